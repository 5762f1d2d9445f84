"""A folder is shown by a fixed program, and only where somebody would see it."""

import os
import threading

import pytest
from comfyui_flenwheel.nodes import file_manager

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for xdg-open is a shell script")


def test_the_folder_is_the_only_argument_whatever_its_name(tmp_path, monkeypatch):
    opener, folder, told = tmp_path / "xdg-open", tmp_path / "$(touch x) Zoë; rm", tmp_path / "told"
    opener.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > "{told}"\n')
    opener.chmod(0o755)
    folder.mkdir()
    monkeypatch.setattr(file_manager.sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("DISPLAY", ":0")
    assert file_manager.show(folder)
    for thread in threading.enumerate():
        if thread.name == "file manager":  # it waits for the program's end
            thread.join()
    assert told.read_text() == f"{folder}|"


def test_where_there_is_no_screen_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(file_manager.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert file_manager.program() is None and not file_manager.show(tmp_path)
