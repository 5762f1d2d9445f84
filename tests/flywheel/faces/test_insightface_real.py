"""The optional engine with the real insightface and onnxruntime, on two tiny networks made here in the form of theirs: a detector that takes red squares
for faces, and a recogniser that adds pixels up. What the real weights see stays untested: they cannot be shipped."""

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.faces import insightface_arcface
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from comfyui_flenwheel.flywheel.references import choose_references
from PIL import Image

WHY = "pip install insightface onnxruntime onnx, in an environment of its own, to run this with the real packages"
onnx = pytest.importorskip("onnx", reason=WHY)
pytest.importorskip("onnxruntime", reason=WHY)
pytest.importorskip("insightface.app", reason=WHY)

pytestmark = pytest.mark.filterwarnings("ignore:.estimate. is deprecated:FutureWarning")  # insightface 2.1 of scikit-image

STRIDES = (8, 16, 32)
POINTS = ((-1, -0.5), (1, -0.5), (0, 0.25), (-0.75, 1), (0.75, 1))  # eyes, nose, corners of the mouth, in steps of 32 px from the middle


def detector():
    """SCRFD's form: scores, boxes and points for three strides, two anchors each. Only the coarsest sees: a cell that is red has a face on its corner."""
    make, number = onnx.helper, onnx.numpy_helper.from_array
    red = np.zeros((2, 3, 1, 1), np.float32)
    red[:, 0], red[:, 1], red[:, 2] = 8, -4, -4  # insightface turns BGR into RGB: were we to hand it RGB, blue squares would be faces
    constants = {
        "red": red,
        "edge": np.full(2, -6, np.float32),
        "blind": np.zeros((2, 3, 1, 1), np.float32),
        "never": np.full(2, -9, np.float32),
    }
    constants |= {"column": np.array([-1, 1], np.int64), "nought": np.zeros(1, np.float32)}
    constants |= {"box": np.full((1, 4), 2.5, np.float32), "points": np.array(POINTS, np.float32).reshape(1, 10)}
    nodes, outputs = [], {"score": [], "box": [], "points": []}
    for stride in STRIDES:
        seen = ("red", "edge") if stride == 32 else ("blind", "never")
        nodes += [
            make.make_node("AveragePool", ["pixels"], [f"mean{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2),
            make.make_node("Conv", [f"mean{stride}", *seen], [f"map{stride}"]),
            make.make_node("Sigmoid", [f"map{stride}"], [f"sure{stride}"]),
            make.make_node("Transpose", [f"sure{stride}"], [f"last{stride}"], perm=[0, 2, 3, 1]),
            make.make_node("Reshape", [f"last{stride}", "column"], [f"score{stride}"]),
            make.make_node("Mul", [f"score{stride}", "nought"], [f"zero{stride}"]),
            make.make_node("Add", [f"zero{stride}", "box"], [f"box{stride}"]),
            make.make_node("Add", [f"zero{stride}", "points"], [f"points{stride}"]),
        ]
        for name, width in (("score", 1), ("box", 4), ("points", 10)):
            outputs[name].append(make.make_tensor_value_info(f"{name}{stride}", onnx.TensorProto.FLOAT, [None, width]))
    pixels = make.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 3, None, None])
    listed = [value for name in ("score", "box", "points") for value in outputs[name]]
    return saved(make.make_graph(nodes, "detector", [pixels], listed, [number(value, name) for name, value in constants.items()]))


def recogniser():
    """ArcFace's form: 112 px in, 512 numbers out."""
    make, weights = onnx.helper, np.random.default_rng(0).normal(size=(192, 512)).astype(np.float32)
    nodes = [
        make.make_node("AveragePool", ["face"], ["mean"], kernel_shape=[14, 14], strides=[14, 14]),
        make.make_node("Flatten", ["mean"], ["flat"]),
        make.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    face = make.make_tensor_value_info("face", onnx.TensorProto.FLOAT, [1, 3, 112, 112])
    told = make.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [1, 512])
    return saved(make.make_graph(nodes, "recogniser", [face], [told], [onnx.numpy_helper.from_array(weights, "weights")]))


def saved(graph) -> bytes:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def engine(monkeypatch, tmp_path):
    pack = tmp_path / "engines" / "models" / "auraface"
    write_whole(pack / "det_10g.onnx", detector())
    write_whole(pack / "glintr100.onnx", recogniser())
    monkeypatch.setenv("FLEN_INSIGHTFACE", str(tmp_path / "engines"))
    return insightface_arcface.load()


def portrait(*people: tuple[int, int, int], seed: int = 0) -> Image.Image:
    """640 px square, where nothing is scaled: for each person a face of this colour, 160 px wide, round a red square; some noise."""
    picture = Image.new("RGB", (640, 640), "grey")
    for number, person in enumerate(people):
        x = 160 + 288 * number
        for side, colour in ((160, person), (80, tuple(255 - value for value in person))):
            picture.paste(colour, (x - side // 2, 160 - side // 2, x + side // 2, 160 + side // 2))
        picture.paste((255, 0, 0), (x, 160, x + 32, 192))
    noise = np.random.default_rng(seed).integers(0, 9, (640, 640, 3), dtype=np.uint8)
    return (
        Image.fromarray(np.asarray(picture) // 2 + 60 + noise)
        if not people
        else Image.fromarray(np.minimum(np.asarray(picture), 246) + noise)
    )


ANNA, BEN = (40, 200, 160), (200, 190, 40)


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


def test_a_dataset_is_scored_by_the_real_package(engine, project):
    records = []
    for name, image in {
        "a": portrait(ANNA, seed=1),
        "b": portrait(ANNA, seed=2),
        "c": portrait(BEN, seed=3),
        "d": portrait(seed=4),
    }.items():
        path = project.stage("source").folder / f"{name}.png"
        write_whole(path, png_bytes(image))
        records.append(ImageRecord(content_key(path), project.relative(path), *image.size, ""))
    dataset = Dataset(project, "source", tuple(records))
    scores = identity.score(dataset, choose_references(dataset, engine, ["a.png"]), engine)
    told = {image.stem: scores.by_key[image.key] for image in dataset.images}
    assert [told[name].state for name in "abcd"] == ["measured", "measured", "measured", "no_face"]
    assert told["b"].similarity > 0.9 > told["c"].similarity and scores.embedder.startswith("insightface-")
