"""The optional engines: what they say where they are not there, and that their numbers become faces as ours are. Nothing is ever fetched."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import EMBEDDERS, auraface, embedder, insightface_arcface, insightface_pack
from PIL import Image

from ..conftest import picture


class Analysis:
    """Answers as insightface.app.FaceAnalysis does: a list of objects with bbox, kps, det_score and embedding, for a picture in BGR."""

    def get(self, bgr):
        if not bgr.any():
            return []
        if bgr[0, 0, 0] > 250:
            raise ValueError("the model does not fit")
        self.blue_first = bgr[0, 0].tolist()
        points = np.array([[60, 80], [140, 80], [100, 120], [70, 150], [130, 150]], dtype=np.float32)
        near, far = np.eye(512, dtype=np.float32)[:2] * 20
        small = SimpleNamespace(bbox=np.array([10.4, 10, 50, 50], np.float32), kps=points / 4, det_score=np.float32(0.7), embedding=far)
        return [
            small,
            SimpleNamespace(bbox=np.array([40, 30, 160.6, 190], np.float32), kps=points, det_score=np.float32(0.9), embedding=near),
        ]


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No package and no weights, whatever this machine has."""
    monkeypatch.setattr(insightface_pack, "folders", lambda: [tmp_path])
    monkeypatch.setenv("UNIFACE_CACHE_DIR", str(tmp_path))
    for name in ("insightface.app", "onnxruntime", "uniface"):
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("insightface", ["buffalo_l", "a few hundred MB", "https://github.com/deepinsight/insightface", "non-commercial research only"]),
        ("auraface", ["glintr100.onnx (261 MB)", "scrfd_10g_bnkps.onnx (17 MB)", "https://huggingface.co/fal/AuraFace-v1", "Apache-2.0"]),
        ("uniface", ["retinaface_mnet_v2.onnx (3.5 MB)", "adaface_ir_101.onnx (249 MB)", "https://github.com/yakhyo/adaface-onnx"]),
    ],
)
def test_what_is_missing_is_named_with_size_address_and_folder_and_nothing_is_fetched(nowhere, name, told):
    with pytest.raises(IdentityError) as caught:
        embedder(name)
    text = str(caught.value)
    assert all(words in text for words in told) and str(nowhere) in text and f"pip install {name.replace('aura', 'insight')}" in text
    assert "the package onnxruntime is missing" in text and "nothing is installed or downloaded by itself" in text
    assert list(nowhere.iterdir()) == []


def test_packages_without_a_model_pack_are_not_asked(monkeypatch, nowhere):
    """FaceAnalysis downloads what it does not find, so it must never be made before a pack is there."""

    def downloads(**_):
        raise AssertionError("this would have downloaded models")

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "insightface.app", SimpleNamespace(FaceAnalysis=downloads))
    (nowhere / "models" / "buffalo_l").mkdir(parents=True)
    (nowhere / "models" / "buffalo_l" / "det_10g.onnx").write_bytes(b"x")  # half a pack is none
    with pytest.raises(IdentityError, match="no model pack"):
        insightface_arcface.load()


@pytest.mark.parametrize(
    ("module", "pack", "detector", "recogniser"),
    [
        (insightface_arcface, "antelopev2", "scrfd_10g_bnkps.onnx", "glintr100.onnx"),
        (insightface_arcface, "buffalo_l", "det_10g.onnx", "w600k_r50.onnx"),
        (auraface, "auraface", "scrfd_10g_bnkps.onnx", "glintr100.onnx"),
    ],
)
def test_a_pack_that_is_there_is_used_and_named_by_its_weights(monkeypatch, nowhere, module, pack, detector, recogniser):
    """Under the file names that the makers gave them."""
    asked = {}

    class Recorded(Analysis):
        def __init__(self, **how):
            asked.update(how)

        def prepare(self, **how):
            asked.update(how)

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "insightface.app", SimpleNamespace(FaceAnalysis=Recorded))
    folder = nowhere / "models" / pack
    folder.mkdir(parents=True)
    for name in (detector, recogniser):
        (folder / name).write_bytes(b"x")
    first = module.load()
    assert asked["name"] == pack and asked["root"] == str(nowhere) and asked["allowed_modules"] == ["detection", "recognition"]
    (folder / recogniser).write_bytes(b"y")
    assert module.load().fingerprint() != first.fingerprint()
    other = auraface if module is insightface_arcface else insightface_arcface
    with pytest.raises(IdentityError, match="no model pack"):
        other.load()


def test_its_faces_keep_the_contract():
    analysis = Analysis()
    engine = insightface_pack.InsightFace(analysis, insightface_arcface.PACKS, "key")
    image = picture(1, (256, 256))
    image.putpixel((0, 0), (1, 2, 3))
    faces = engine.faces(image)
    assert analysis.blue_first == [3, 2, 1]
    assert [face.width for face in faces] == [121, 40] and faces[0].box == (40, 30, 161, 190), "widest first"
    for face in faces:
        assert face.embedding.shape == (512,) and face.embedding.dtype == np.float32 and np.linalg.norm(face.embedding) == pytest.approx(1)
        assert face.yaw == pytest.approx(0, abs=0.01) and 0 <= face.luma <= 255 and 0 <= face.clipped_low + face.clipped_high <= 1
    assert engine.fingerprint() == "insightface-key" and engine.name in EMBEDDERS and engine.reach > 1
    assert engine.faces(Image.new("RGB", (64, 64))) == ()
    with pytest.raises(IdentityError, match="does not fit"):
        engine.faces(Image.new("RGB", (64, 64), "white"))
    assert identity.similarity(engine.reach, engine.reach) == pytest.approx(0.6)
