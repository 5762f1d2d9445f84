"""The optional engine: what it says when it is not there, and that its numbers become faces as ours are. Its models are never fetched."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import EMBEDDERS, embedder, insightface_arcface
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


def test_what_is_missing_is_named_with_its_licence_and_nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEN_INSIGHTFACE", str(tmp_path))
    monkeypatch.setattr(insightface_arcface, "folders", lambda: [tmp_path])
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IdentityError) as caught:
        embedder("insightface")
    assert len(caught.value.problems) == 3 and str(tmp_path / "models") in str(caught.value)
    assert "non-commercial" in str(caught.value) and "nothing is installed or downloaded by itself" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_packages_without_a_model_pack_are_not_asked(monkeypatch, tmp_path):
    """FaceAnalysis downloads what it does not find, so it must never be made before a pack is there."""

    def downloads(**_):
        raise AssertionError("this would have downloaded models")

    monkeypatch.setattr(insightface_arcface, "folders", lambda: [tmp_path])
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "insightface.app", SimpleNamespace(FaceAnalysis=downloads))
    (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    (tmp_path / "models" / "buffalo_l" / "det_10g.onnx").write_bytes(b"x")  # half a pack is none
    with pytest.raises(IdentityError, match="no model pack"):
        insightface_arcface.load()


def test_a_pack_that_is_there_is_used_and_named_by_its_weights(monkeypatch, tmp_path):
    asked = {}

    class Recorded(Analysis):
        def __init__(self, **how):
            asked.update(how)

        def prepare(self, **how):
            asked.update(how)

    monkeypatch.setattr(insightface_arcface, "folders", lambda: [tmp_path])
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "insightface.app", SimpleNamespace(FaceAnalysis=Recorded))
    pack = tmp_path / "models" / "auraface"
    pack.mkdir(parents=True)
    for name in ("det_10g.onnx", "glintr100.onnx"):
        (pack / name).write_bytes(b"x")
    first = insightface_arcface.load()
    assert asked["name"] == "auraface" and asked["root"] == str(tmp_path) and asked["allowed_modules"] == ["detection", "recognition"]
    (pack / "glintr100.onnx").write_bytes(b"y")
    assert insightface_arcface.load().fingerprint() != first.fingerprint()


def test_its_faces_keep_the_contract():
    analysis = Analysis()
    engine = insightface_arcface.InsightFace(analysis, "key")
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
