import json
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import comfyui_flenwheel
import numpy as np
import psutil
import pytest
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import dlib_resnet, embedder, prominent
from comfyui_flenwheel.flywheel.faces.helpers import Helpers
from comfyui_flenwheel.flywheel.images import content_key, open_image
from PIL import Image, ImageFile

from .portraits import engine, portraits

pytestmark = pytest.mark.faces
ROOT = Path(comfyui_flenwheel.__file__).parent


@pytest.fixture(scope="module")
def dlib_engine():
    return engine()


@pytest.fixture(scope="module")
def pictures():
    return {path.stem: open_image(path).image for path in portraits()}


def test_each_portrait_shows_one_face(dlib_engine, pictures):
    for name, image in pictures.items():
        faces = dlib_engine.faces(image)
        assert len(faces) == 1, name
        assert faces[0].found_by == "hog" and not faces[0].doubt and faces[0].embedding.shape == (128,)
        assert faces[0].embedding.dtype == np.float32 and 1.2 < np.linalg.norm(faces[0].embedding) < 1.7


def test_angles_and_smiles_as_a_person_sees_them(dlib_engine, pictures):
    seen = {name: dlib_engine.faces(image)[0] for name, image in pictures.items()}
    assert seen["obama2"].yaw < -0.14 < seen["obama"].yaw < 0.14  # obama2 looks to the viewer's left
    assert {name for name, face in seen.items() if face.smiling} == {"obama", "obama_partial_face", "obama_partial_face2"}
    mirrored = dlib_engine.faces(pictures["obama2"].transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0]
    assert mirrored.yaw == pytest.approx(-seen["obama2"].yaw, abs=0.06)


def test_the_same_numbers_as_face_recognition(dlib_engine, pictures, tmp_path):
    """In another process, because importing face_recognition can end this one and changes Pillow."""
    boxes = {}
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
        boxes[name] = dlib_engine.faces(image)[0].box
    script = (
        "import json, sys, warnings; warnings.simplefilter('ignore')\n"
        "import face_recognition, numpy\nfrom PIL import Image\n"
        "folder, boxes = sys.argv[1], json.loads(sys.argv[2])\n"
        "print(json.dumps({name: list(face_recognition.face_encodings(numpy.array(Image.open(f'{folder}/{name}.png')),"
        " known_face_locations=[(top, right, bottom, left)], model='small')[0])"
        " for name, (left, top, right, bottom) in boxes.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), json.dumps(boxes)], capture_output=True, text=True, timeout=120)
    if done.returncode or not done.stdout:
        pytest.skip(f"face_recognition does not run here: {done.stdout[-200:]} {done.stderr[-200:]}")
    theirs = json.loads(done.stdout.splitlines()[-1])
    for name, image in pictures.items():
        assert np.abs(dlib_engine.faces(image)[0].embedding - np.array(theirs[name])).max() < 1e-6, name


def test_the_decisions_of_face_recognition_in_every_clear_case(dlib_engine, pictures, tmp_path):
    """The loop everybody writes, in another process, with boxes of its own."""
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
    script = (
        "import json, pathlib, sys, warnings; warnings.simplefilter('ignore')\n"
        "import face_recognition\n"
        "files = pathlib.Path(sys.argv[1]).glob('*.png')\n"
        "print(json.dumps({file.stem: [list(face) for face in face_recognition.face_encodings(face_recognition.load_image_file(file))]"
        " for file in files}))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300)
    if done.returncode or not done.stdout:
        pytest.skip(f"face_recognition does not run here: {done.stdout[-200:]} {done.stderr[-200:]}")
    theirs = {name: np.array(faces) for name, faces in json.loads(done.stdout.splitlines()[-1]).items()}
    ours = {name: dlib_engine.faces(image) for name, image in pictures.items()}
    assert {name: len(faces) for name, faces in theirs.items()} == {name: len(faces) for name, faces in ours.items()}
    clear = 0
    for one, other in combinations(sorted(pictures), 2):
        expected = np.linalg.norm(theirs[one][0] - theirs[other][0])
        measured = np.linalg.norm(ours[one][0].embedding - ours[other][0].embedding)
        if abs(expected - dlib_resnet.REACH) > 0.05:
            clear += 1
            assert (measured <= dlib_resnet.REACH) == (expected <= dlib_resnet.REACH), (one, other)
    assert clear >= 18, "of 21 pairs"


def test_the_model_that_is_not_free_for_every_use_is_not_needed(tmp_path, monkeypatch, dlib_engine, pictures):
    """face_recognition_models without its 68 points, whose author allows no commercial use."""
    (tmp_path / "models").mkdir()
    for path in dlib_engine._files.values():
        (tmp_path / "models" / path.name).symlink_to(path)
    assert not any("68" in path.name for path in (tmp_path / "models").iterdir())
    monkeypatch.setattr(dlib_resnet, "model_files", lambda: {part: tmp_path / "models" / name for part, name in dlib_resnet.FILES.items()})
    bare = dlib_resnet.load()
    assert bare.fingerprint() == dlib_engine.fingerprint()
    (face,) = bare.faces(pictures["obama2"])
    assert face.yaw is not None and face.smile is not None, "neither angle nor smile needs it"


def test_loading_neither_quits_nor_touches_pillow(dlib_engine, pictures):
    dlib_engine.faces(pictures["obama"])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert not {"face_recognition", "face_recognition_models"} & sys.modules.keys()


def test_what_is_missing_is_named(tmp_path):
    """An empty Python: neither dlib nor the models, and nothing is installed or imported at load time."""
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('comfyui_flenwheel', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['comfyui_flenwheel'] = module; spec.loader.exec_module(module)\n"
        "from comfyui_flenwheel.flywheel.faces import embedder\n"
        "assert 'dlib' not in sys.modules\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('dlib', '_dlib_pybind11'): raise ModuleNotFoundError('No module named dlib')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'face_recognition_models' else find_spec(name)\n"
        "from comfyui_flenwheel.flywheel.errors import IdentityError\n"
        "try: embedder()\n"
        "except IdentityError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "pip install dlib-bin face_recognition_models" in done.stdout, done.stderr
    assert "dlib-bin is missing" in done.stdout and "face_recognition_models is missing" in done.stdout
    assert "nothing is installed by itself" in done.stdout


def test_an_unknown_engine_names_those_there_are():
    with pytest.raises(IdentityError, match="dlib"):
        embedder("arcface")


def test_pictures_without_a_face(dlib_engine):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    assert dlib_engine.faces(noise) == () and dlib_engine.faces(Image.new("RGB", (8, 900))) == ()


def test_two_faces_and_a_small_one(dlib_engine, pictures):
    one, other = pictures["obama"], pictures["biden"].resize((485, 1102))
    both = Image.new("RGB", (one.width + other.width, one.height), "grey")
    both.paste(one, (0, 0))
    both.paste(other, (one.width, 0))
    faces = dlib_engine.faces(both)
    assert len(faces) == 2 and faces[0].width >= faces[1].width and len(prominent(faces)) == 2
    assert np.linalg.norm(faces[0].embedding - faces[1].embedding) > 0.7


def test_a_huge_photo_is_measured_in_its_own_pixels(dlib_engine, pictures):
    small = dlib_engine.faces(pictures["obama2"])[0]
    huge = dlib_engine.faces(pictures["obama2"].resize((3130, 6000)))[0]
    assert np.allclose(huge.box, np.array(small.box) * 5, atol=200)  # one step of the pyramid
    assert np.linalg.norm(huge.embedding - small.embedding) < 0.2


def test_threads_share_one_engine(dlib_engine, pictures):
    alone = {name: dlib_engine.faces(image)[0].embedding for name, image in pictures.items()}
    ready = threading.Barrier(2)

    def measure(_: int) -> dict[str, np.ndarray]:
        ready.wait()
        return {name: dlib_engine.faces(image)[0].embedding for name, image in pictures.items()}

    with ThreadPoolExecutor(2) as pool:
        for together in pool.map(measure, range(2)):
            assert all(np.array_equal(together[name], alone[name]) for name in alone)


def test_files_are_measured_as_their_pictures_are(dlib_engine, pictures, tmp_path):
    """Several at once, in helpers, batched; what cannot be read is one failed promise."""
    paths = {content_key(path): path for path in portraits()}
    cut = tmp_path / "cut.png"
    cut.write_bytes(portraits()[0].read_bytes()[:3000])
    with dlib_engine.reading() as begin:
        promised = {key: begin(key, path) for key, path in paths.items()}
        stale, broken = begin("0" * 16, portraits()[0]), begin(content_key(cut), cut)
        for key, path in paths.items():
            (measured,), (face,) = promised[key].result(), dlib_engine.faces(pictures[path.stem])
            assert measured.box == face.box and np.abs(measured.embedding - face.embedding).max() < 1e-6, path.name
        assert "changed on disk" in str(stale.exception()) and "damaged" in str(broken.exception())


def test_a_large_jpeg_is_found_small_and_measured_in_its_own_pixels(dlib_engine, pictures, tmp_path):
    """Its face is 1,500 px or 260 px wide: the first needs no more than a draft, the second needs everything."""
    big = pictures["obama2"].resize((3600, 3600 * pictures["obama2"].height // pictures["obama2"].width))
    far = Image.new("RGB", (2400, 1900), (90, 110, 130))
    far.paste(pictures["obama2"], (1000, 500))
    for name, image in (("big", big), ("far", far)):
        path = tmp_path / f"{name}.jpg"
        image.save(path, quality=95)
        with dlib_engine.reading() as begin:
            (measured,) = begin(content_key(path), path).result()
        (face,) = dlib_engine.faces(open_image(path).image)
        assert np.abs(np.array(measured.box) - face.box).max() < 0.3 * face.width, name
        assert np.linalg.norm(measured.embedding - face.embedding) < 0.2, name


def test_a_helper_that_dies_costs_one_picture(dlib_engine, pictures):
    helpers = Helpers(dlib_engine._files, 1)
    engine = dlib_resnet.DlibResnet(dlib_engine._files, helpers, dlib_engine.nets)
    with helpers.one():
        pass
    helpers._idle[0]._process.kill()
    helpers._idle[0]._process.wait()
    assert len(engine.faces(pictures["obama"])) == 1, "a helper that has ended is replaced"
    with pytest.raises(IdentityError, match="has ended"), helpers.one() as ask:
        helpers_process = ask.__self__._process
        helpers_process.kill()
        ask("descriptors", [])
    assert len(engine.faces(pictures["obama"])) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads these settings, and only Linux counts pages in /proc")
def test_a_helper_keeps_the_memory_of_one_picture_for_the_next(dlib_engine, pictures, tmp_path):
    engine = dlib_resnet.DlibResnet(dlib_engine._files, Helpers(dlib_engine._files, 1), dlib_engine.nets)
    path = tmp_path / "obama.png"
    pictures["obama"].resize((1024, 1024)).save(path)

    def measured(times: int) -> int:
        """Pages that the helper has been given when it has measured the file so often."""
        for _ in range(times):
            with engine.reading() as begin:
                begin(content_key(path), path).result()
        return _pages(engine._helpers._idle[0]._process.pid)

    warm = measured(3)
    assert measured(4) - warm < 4 * 1024 * 1024 // 4096, "not one byte for each pixel"


def _pages(pid: int) -> int:
    """How many pages of memory a process has been given since it began (minor faults, the tenth field)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_where_no_process_can_be_started_faces_are_found_here(dlib_engine, pictures, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(ROOT / "no such program"))
    engine = dlib_resnet.DlibResnet(dlib_engine._files, Helpers(dlib_engine._files, 2), dlib_engine.nets)
    (face,) = engine.faces(pictures["obama"])
    assert np.array_equal(face.embedding, dlib_engine.faces(pictures["obama"])[0].embedding)
    assert engine.fingerprint() == dlib_engine.fingerprint()


def test_a_helper_ends_with_the_process_that_started_it(dlib_engine):
    script = (
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from flywheel.faces import dlib_resnet\nengine = dlib_resnet.load()\n"
        "print(engine._helpers._idle[0]._process.pid, flush=True)\nimport os\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_fingerprint_names_weights_and_cascade(dlib_engine, monkeypatch):
    assert dlib_engine.fingerprint() == embedder("dlib").fingerprint() == dlib_resnet.load().fingerprint()
    monkeypatch.setattr(dlib_resnet, "CASCADE", dlib_resnet.CASCADE + 1)
    assert dlib_resnet.load().fingerprint() != dlib_engine.fingerprint()
