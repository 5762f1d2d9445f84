"""The optional engines with the real packages, on tiny networks made here in the form of theirs."""

import hashlib

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity
from comfyui_flenwheel.flywheel.errors import IdentityError, ScoreMismatch
from comfyui_flenwheel.flywheel.faces import auraface, insightface_arcface, uniface_adaface
from comfyui_flenwheel.flywheel.images import write_whole
from comfyui_flenwheel.flywheel.references import choose_references
from PIL import Image

from .tiny_onnx import ANNA, BEN, WHY, portrait, recogniser, retinaface, scrfd

pytest.importorskip("onnxruntime", reason=WHY)

pytestmark = pytest.mark.filterwarnings("ignore:.estimate. is deprecated:FutureWarning")  # insightface 2.1 of scikit-image


def insightface_engine(monkeypatch, folder):
    return in_a_pack(insightface_arcface, "buffalo_l", ("det_10g.onnx", "w600k_r50.onnx"), monkeypatch, folder)


def auraface_engine(monkeypatch, folder):
    return in_a_pack(auraface, "auraface", ("scrfd_10g_bnkps.onnx", "glintr100.onnx"), monkeypatch, folder)


def in_a_pack(module, pack, files, monkeypatch, folder):
    """Under the names that the real files have."""
    pytest.importorskip("insightface.app", reason=WHY)
    for name, network in zip(files, (scrfd(), recogniser()), strict=True):
        write_whole(folder / "models" / pack / name, network)
    monkeypatch.setenv("FLEN_INSIGHTFACE", str(folder))
    return module.load()


def uniface_engine(monkeypatch, folder):
    constants = pytest.importorskip("uniface", reason=WHY).constants
    monkeypatch.setenv("UNIFACE_CACHE_DIR", str(folder))
    for weights, network in ((uniface_adaface.DETECTOR, retinaface()), (uniface_adaface.RECOGNISER, recogniser())):
        write_whole(weights.path, network)
        known = constants.ModelInfo(url=weights.address, sha256=hashlib.sha256(network).hexdigest())
        monkeypatch.setitem(constants.MODEL_REGISTRY, getattr(constants, weights.kind)(weights.value), known)
    return uniface_adaface.load()


@pytest.fixture(params=[insightface_engine, auraface_engine, uniface_engine], ids=lambda make: make.__name__)
def engine(request, monkeypatch, tmp_path):
    return request.param(monkeypatch, tmp_path / "engines")


def test_the_real_package_finds_and_describes_through_our_engine(engine):
    one, two = engine.faces(portrait(ANNA, seed=1)), engine.faces(portrait(ANNA, BEN, seed=2))
    assert len(one) == 1 and len(two) == 2 and engine.faces(portrait(seed=3)) == ()
    (face,) = one
    assert face.box == (80, 80, 240, 240) and face.confidence > 0.5 and face.yaw == pytest.approx(0, abs=0.02)
    assert face.embedding.shape == (512,) and np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    apart = sorted(float(np.linalg.norm(face.embedding - other.embedding)) for other in two)
    assert apart[0] < 0.1 < apart[1]
    blue = Image.fromarray(np.asarray(portrait(ANNA, seed=1))[:, :, ::-1].copy())
    assert engine.faces(blue) == (), "the channels arrive in the order it wants"


def test_a_dataset_is_scored_by_the_real_package(engine, album):
    dataset = album(
        a=portrait(ANNA, seed=1),
        b=portrait(ANNA, seed=2),
        c=portrait(BEN, seed=3),
        d=portrait(seed=4),
        e=Image.new("RGB", (1, 2000)),
    )
    scores = identity.score(dataset, choose_references(dataset, engine, ["a.png"]), engine)
    told = {image.stem: scores.by_key[image.key] for image in dataset.images}
    assert [told[name].state for name in "abcd"] == ["measured", "measured", "measured", "no_face"]
    assert told["e"].state in ("no_face", "unreadable"), "a picture it cannot take stops nothing"
    assert told["b"].similarity > 0.9 > told["c"].similarity and scores.embedder.startswith(f"{engine.name}-")


def test_engines_are_never_compared_though_they_read_the_same_networks(monkeypatch, tmp_path, album):
    made = [make(monkeypatch, tmp_path / make.__name__) for make in (insightface_engine, auraface_engine, uniface_engine)]
    assert len({engine.fingerprint() for engine in made}) == 3 == len({engine.reach for engine in made})
    dataset = album(a=portrait(ANNA, seed=1))
    for engine in made:
        references = choose_references(dataset, engine, ["a.png"])
        for other in made:
            if other is not engine:
                with pytest.raises(ScoreMismatch, match="another face engine"):
                    identity.score(dataset, references, other)


def test_a_weight_file_that_uniface_would_replace_is_refused_before_it_is_asked(monkeypatch, tmp_path):
    uniface_engine(monkeypatch, tmp_path)
    spoiled = uniface_adaface.RECOGNISER.path
    spoiled.write_bytes(b"half a file")
    with pytest.raises(IdentityError, match="is not the file that uniface expects") as caught:
        uniface_adaface.load()
    assert len(caught.value.problems) == 1 and spoiled.read_bytes() == b"half a file", "uniface would have deleted it and asked the network"
