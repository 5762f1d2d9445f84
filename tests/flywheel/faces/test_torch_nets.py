"""dlib's networks in torch: the numbers of dlib, and what happens where torch cannot give them."""

import builtins
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.faces import dlib_resnet
from comfyui_flenwheel.flywheel.faces import helpers as helping
from comfyui_flenwheel.flywheel.images import open_image

from .portraits import engine, portraits

pytestmark = pytest.mark.faces
torch = pytest.importorskip("torch")
from comfyui_flenwheel.flywheel.faces import torch_nets  # noqa: E402 - needs torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files():
    return engine()._files


@pytest.fixture(scope="module")
def helpers(files):
    return helping.Helpers(files, 1)


@pytest.fixture(scope="module")
def theirs(helpers):
    return dlib_resnet.HelperNets(helpers)


@pytest.fixture(scope="module")
def mine(files):
    return torch_nets.TorchNets(files["resnet"], files["cnn"], CPU)


@pytest.fixture(scope="module")
def chips(helpers, files, mine):
    """Faces cut out, faces mirrored, and noise."""
    found: list[np.ndarray] = []
    measuring = dlib_resnet.DlibResnet(files, helpers, Spy(found, mine))
    for path in portraits():
        measuring.faces(open_image(path, at_least=640).image)
    noise = np.random.default_rng(0).integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    return [*found, *(np.ascontiguousarray(chip[:, ::-1]) for chip in found), *noise]


class Spy:
    """Passes chips on and keeps them."""

    name = "spy"

    def __init__(self, kept, nets):
        self.kept, self.nets = kept, nets

    def descriptors(self, chips):
        self.kept += chips
        return self.nets.descriptors(chips)

    def faces(self, pixels, confidence):
        return self.nets.faces(pixels, confidence)


def test_descriptors_are_dlibs_to_two_millionths(theirs, mine, chips):
    assert len(chips) == 16
    a, b = theirs.descriptors(chips), mine.descriptors(chips)
    assert a.shape == b.shape == (len(chips), 128) and b.dtype == np.float32
    assert np.linalg.norm(a - b, axis=1).max() < 3e-6
    alone = np.concatenate([mine.descriptors([chip]) for chip in chips])
    assert np.linalg.norm(alone - b, axis=1).max() < 3e-6, "a batch changes nothing"


def test_the_probe_is_dlibs(theirs):
    assert theirs.descriptors([dlib_resnet.probe()])[0, :8] == pytest.approx(dlib_resnet.PROBE, abs=1e-6)


def test_the_detector_sees_what_dlibs_sees(theirs, mine):
    for path in portraits()[1:3]:  # dlib takes a second each
        image = open_image(path, at_least=512).image
        image.thumbnail((512, 512))
        pixels = np.asarray(image)
        (box, sure), *others = theirs.faces(pixels, 0.6)
        (my_box, my_sure), *my_others = mine.faces(pixels, 0.6)
        assert not others and not my_others, path.name
        size = box[2] - box[0]
        assert np.abs(np.array(box) - my_box).max() < 0.15 * size and abs(sure - my_sure) < 0.15, path.name


def test_nothing_is_seen_in_nothing(mine):
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert mine.faces(noise, 0.6) == [] and mine.faces(np.zeros((20, 20, 3), np.uint8), 0.6) == []


def test_other_weights_are_refused(files, tmp_path):
    with pytest.raises(torch_nets.UnknownWeights, match=r"shape_predictor.*install"):
        torch_nets.ResNet(files["points"], CPU)
    cut = tmp_path / "cut.dat"
    cut.write_bytes(files["cnn"].read_bytes()[:5000])
    with pytest.raises(torch_nets.UnknownWeights):
        torch_nets.Detector(cut, CPU)


def test_numbers_that_are_not_dlibs_are_not_used(helpers, files, monkeypatch):
    assert dlib_resnet._nets(files, helpers).name.startswith("torch")
    monkeypatch.setattr(dlib_resnet, "PROBE", tuple(value + 0.01 for value in dlib_resnet.PROBE))
    assert dlib_resnet._nets(files, helpers).name == "dlib"


def test_without_torch_dlib_measures_and_says_so_in_its_fingerprint(helpers, files, monkeypatch):
    real = builtins.__import__

    def no_torch(name, globals=None, locals=None, fromlist=(), level=0):
        if "torch_nets" in (fromlist or ()):
            raise ImportError("No module named 'torch'")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    slow = dlib_resnet.DlibResnet(files, helpers)
    assert slow.nets.name == "dlib"
    monkeypatch.undo()
    fast = engine()
    assert fast.nets.name.startswith("torch") and slow.fingerprint() != fast.fingerprint()
    photo = open_image(portraits()[0], at_least=1024).image
    assert np.linalg.norm(slow.faces(photo)[0].embedding - fast.faces(photo)[0].embedding) < 3e-6


def test_threads_that_share_the_processors_compute_alone_and_no_other_thread_does(mine):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(10):  # threads that begin in the same moment take nobody's number
            with ThreadPoolExecutor(6, initializer=mine.share) as pool:
                assert set(pool.map(lambda _: torch.get_num_threads(), range(12))) == {1}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3, "threads to come"
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def every_level(detector, pixels):
    """What the detector sees when nothing is left out or rounded."""
    with torch.inference_mode():
        maps = [(level.shape, detector._map(level, detector._layers)) for level in detector._pyramid(pixels)]
        found = [face for size, map in maps for face in torch_nets._peaks(map, size, pixels.shape, 0.6)]
    return torch_nets._without_repeats(sorted(found, key=lambda face: -face[1]))


@pytest.mark.parametrize("rounded", [False, True])
def test_a_first_glance_loses_and_moves_no_face(files, rounded):
    detector = torch_nets.Detector(files["cnn"], CPU)
    detector._glancing = [layer.rounded() for layer in detector._layers] if rounded else detector._layers
    faces = 0
    for number, path in enumerate(portraits()):
        image = open_image(path, at_least=512).image
        image.thumbnail((512 - 40 * (number % 4), 512 - 40 * (number % 4)))
        for turned in (image, image.rotate(30)):
            pixels = np.asarray(turned)
            exact, glanced = every_level(detector, pixels), detector(pixels, 0.6)
            assert [box for box, _ in glanced] == [box for box, _ in exact], path.name
            assert [sure for _, sure in glanced] == pytest.approx([sure for _, sure in exact], abs=1e-5)
            faces += len(exact)
    assert faces >= 10


def test_rounding_is_used_only_where_it_is_quicker_and_right(files, monkeypatch):
    def glances(*clock):
        ticks = iter(clock)
        monkeypatch.setattr(torch_nets.time, "perf_counter", lambda: next(ticks))
        detector = torch_nets.Detector(files["cnn"], CPU)
        return "rounded" if detector._glancing is not detector._layers else "exact"

    assert glances(0, 2, 2, 3) == "rounded" and glances(0, 1, 1, 3) == "exact"
    right = torch_nets._Convolution.rounded
    monkeypatch.setattr(
        torch_nets._Convolution, "rounded", lambda layer: torch_nets.replace(right(layer), bias=right(layer).bias + torch_nets.ROUNDED)
    )
    assert glances(0, 2, 2, 3) == "exact", "wrong"

    def missing(layer):
        return torch_nets.replace(layer, weight=layer.weight.bfloat16())  # torch refuses to mix the two

    monkeypatch.setattr(torch_nets._Convolution, "rounded", missing)
    assert glances(0, 2, 2, 3) == "exact", "impossible"
