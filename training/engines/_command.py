"""A program as it is started, and the file that starts it as well: by a person, in a terminal, without us."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

WINDOWS = sys.platform == "win32"
BY_HAND = (
    "What was started last, as it was. Change the settings it names, or these, and start this file in a terminal; the results lie in out/."
)


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments, where it is started, and what is added to its environment."""

    program: Path
    arguments: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)


def by_hand(command: Command, *, windows: bool = WINDOWS) -> tuple[str, str]:
    """Name and text of a file that starts this command as it was, in a terminal and without us: for sh, or for Windows' cmd.

    One option a line, so that it can be read and changed.
    """
    quote = _for_cmd if windows else shlex.quote
    rows: list[str] = []
    for word in (str(command.program), *command.arguments):
        if not rows or word.startswith("--"):
            rows.append(quote(word))
        else:
            rows[-1] += f" {quote(word)}"
    env = {"PYTHONUTF8": "1", **command.env}
    is_script = bool(command.arguments) and command.arguments[0].endswith(".py")
    name = f"run-{Path(command.arguments[0] if is_script else command.program).stem}"
    if windows:
        head = ["@echo off", "chcp 65001 >nul", f"rem {BY_HAND}", f"cd /d {quote(str(command.cwd))}", "if errorlevel 1 exit /b 1"]
        head += [f'set "{key}={value.replace("%", "%%")}"' for key, value in env.items()]
        return f"{name}.cmd", "\r\n".join([*head, " ^\r\n  ".join(rows), ""])
    head = ["#!/bin/sh", f"# {BY_HAND}", f"cd {quote(str(command.cwd))} || exit"]
    head += [f"export {key}={quote(value)}" for key, value in env.items()]
    return f"{name}.sh", "\n".join([*head, " \\\n  ".join(rows), ""])


def _for_cmd(word: str) -> str:
    """Quoted for a program, for cmd, and for a batch file: three readers with rules of their own.

    A quote within the word ends for cmd what it quotes, so every sign that means something to it is escaped there instead.
    """
    if re.fullmatch(r"[\w./:\\+-]+", word):
        return word
    inside = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), word)
    quoted = f'"{inside}"'.replace("%", "%%")
    return re.sub(r'[&|<>()^"]', r"^\g<0>", quoted) if '"' in word else quoted
