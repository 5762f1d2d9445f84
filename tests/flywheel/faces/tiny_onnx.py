"""Tiny networks in the form of those that insightface and uniface read: detectors that take red squares for faces, and a recogniser that adds pixels
up. And the pictures for them. What the real weights see stays untested: they cannot be shipped."""

import numpy as np
import pytest
from PIL import Image

WHY = "pip install insightface uniface onnxruntime onnx, in an environment of its own, to run this with the real packages"
onnx = pytest.importorskip("onnx", reason=WHY)

STRIDES = (8, 16, 32)
POINTS = ((-1, -0.5), (1, -0.5), (0, 0.25), (-0.75, 1), (0.75, 1))  # eyes, nose, corners of the mouth, in steps of 32 px from the middle


def scrfd() -> bytes:
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


def retinaface() -> bytes:
    """RetinaFace's form: boxes, scores and points for three strides of a picture of 640 px, two anchors each, as distances in parts of the anchor. Only
    the first anchor of the coarsest sees; a cell that is red has a face on its corner, as in `scrfd`."""
    make, number = onnx.helper, onnx.numpy_helper.from_array
    finer, coarsest, anchor = 2 * (80**2 + 40**2), 20**2, 256
    red = np.zeros((2, 3, 1, 1), np.float32)
    red[0, 0], red[0, 1], red[0, 2] = -0.06, -0.06, 0.12  # uniface leaves BGR as it is, less the mean
    corner = np.array([-16, -16], np.float32) / anchor / 0.1  # from the middle of a cell of 32 px
    box = np.concatenate([corner, np.full(2, np.log(160 / anchor) / 0.2)]).astype(np.float32)
    points = (corner + np.array(POINTS, np.float32) * 32 / anchor / 0.1).reshape(1, 10).astype(np.float32)
    constants = {
        "red": red,
        "edge": np.array([-12, -99], np.float32),
        "column": np.array([1, -1, 1], np.int64),
        "blind": np.zeros((1, finer, 1), np.float32),
        "box": np.tile(box, (1, finer + 2 * coarsest, 1)),
        "points": np.tile(points, (1, finer + 2 * coarsest, 1)),
        "one": np.ones(1, np.float32),
        "nought": np.zeros(1, np.float32),
    }
    nodes = [
        make.make_node("AveragePool", ["pixels"], ["mean"], kernel_shape=[32, 32], strides=[32, 32]),
        make.make_node("Conv", ["mean", "red", "edge"], ["map"]),
        make.make_node("Sigmoid", ["map"], ["sure"]),
        make.make_node("Transpose", ["sure"], ["last"], perm=[0, 2, 3, 1]),
        make.make_node("Reshape", ["last", "column"], ["coarse"]),
        make.make_node("Concat", ["blind", "coarse"], ["face"], axis=1),
        make.make_node("Sub", ["one", "face"], ["other"]),
        make.make_node("Concat", ["other", "face"], ["scores"], axis=2),
        make.make_node("Mul", ["face", "nought"], ["zero"]),
        make.make_node("Add", ["zero", "box"], ["boxes"]),
        make.make_node("Add", ["zero", "points"], ["landmarks"]),
    ]
    widths = {"boxes": 4, "scores": 2, "landmarks": 10}
    listed = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None, width]) for name, width in widths.items()]
    pixels = make.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    return saved(make.make_graph(nodes, "detector", [pixels], listed, [number(value, name) for name, value in constants.items()]))


def recogniser() -> bytes:
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
