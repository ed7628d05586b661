"""ONNX targets: onnxruntime's scores, torch's gradients where both agree, and files that are never more than data."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import unfooled as uf
from unfooled.cli import _app
from unfooled.errors import InputError, MissingExtra, TargetError
from unfooled.targets import onnx as from_onnx
from unfooled.targets import resolve
from unfooled.targets._graph import OPERATORS
from unfooled.testing import Linear, linear_distance, linear_points

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


def tensor(name: str, value) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(value), name)


def save(path: Path, nodes, constants=None, given=("n", 4), out=("n", 3), *, opset=17, kind=TensorProto.FLOAT, **more):
    """Write a graph from "x" to "z"; `given` and `out` are shapes, strings being free."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("z", kind, out)],
        [tensor(k, v) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path, **more)
    return path


G = np.random.default_rng(0)
EXACT = Linear.random((4,), 3)
W, B = EXACT.weight.detach().numpy(), EXACT.bias.detach().numpy()


def linear(path: Path, **more) -> Path:
    return save(path, [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)], {"w": W, "b": B}, **more)


def node(op, i="x", o="z", **attributes):
    return helper.make_node(op, i.split(), o.split(), **attributes)


# --- what it answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["n", 1, 5])
def test_scores_are_onnxruntimes_and_gradients_torchs(tmp_path, batch):
    target = from_onnx(linear(tmp_path / "m.onnx", given=(batch, 4), out=(batch, 3)))
    x = torch.rand(12, 4, requires_grad=True)
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    size = batch if isinstance(batch, int) else 12
    theirs = np.concatenate([
        session.run(["z"], {"x": np.resize(x.detach().numpy()[at : at + size], (size, 4))})[0]
        for at in range(0, 12, size)
    ])[:12]  # fmt: skip
    z = target.scores(x)
    assert np.array_equal(z.detach().numpy(), theirs) and target.batch == (None if batch == "n" else batch)
    assert target.access is uf.Access.GRADIENT and target.note == ""
    (g,) = torch.autograd.grad(z[:, 1].sum(), x)
    torch.testing.assert_close(g, torch.from_numpy(W[1]).expand(12, 4))
    with torch.no_grad():
        assert torch.equal(target.scores(x), z)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradient_attacks_reach_the_exact_distance_of_a_linear_file(tmp_path, norm):
    target = from_onnx(linear(tmp_path / "m.onnx"))
    eps = 0.08
    x, y = linear_points(EXACT, (4,), 8, norm, eps)
    for scale, wanted in ((1.05, True), (0.99, False)):
        attacks = ["pgd(steps=60)", "apgd(steps=60, loss='margin')", "apgd_targeted(steps=30)"]
        found = uf.run(attacks, target, x, y, getattr(uf, norm)(eps * scale))
        assert found.success.eq(wanted).all(), scale


@pytest.mark.parametrize("attack", ["square(queries=300)", "ray(queries=300)"])
def test_black_box_attacks_break_files_of_any_batch_size(tmp_path, attack):
    x, y = linear_points(EXACT, (4,), 6, "linf", 0.1)
    for batch in ("n", 1, 4):
        path = linear(tmp_path / f"{batch}.onnx", given=(batch, 4), out=(batch, 3))
        found = uf.run(attack, from_onnx(path, white_box=False), x, y, uf.linf(0.2))
        assert found.success.all()
        assert (linear_distance(EXACT, x, y, "linf") <= found.distance.numpy() * (1 + 1e-4)).all()


IMAGE = ("n", 3, 8, 8)
K = G.standard_normal((3, 3, 3, 3)).astype(np.float32) / 3
ONE = np.abs(G.standard_normal(3)).astype(np.float32) + 0.5
POOL = node("GlobalAveragePool", "h", "p")
END = [POOL, node("Flatten", "p", "z")]


def ends(*nodes, constants=None, opset=17, given=IMAGE):
    return {"nodes": [*nodes, *END], "constants": constants or {}, "opset": opset, "given": given}


def plain(*nodes, constants=None, opset=17):
    return {"nodes": list(nodes), "constants": constants or {}, "opset": opset, "given": ("n", 3)}


def unary(op, **attributes):
    return plain(node(op, **attributes))


CASES = {
    "conv": ends(node("Conv", "x k one", "h", pads=[1, 1, 1, 1]), constants={"k": K, "one": ONE}),
    "conv strided": ends(node("Conv", "x k", "h", strides=[2, 2], pads=[0, 1, 1, 0]), constants={"k": K}),
    "conv same": ends(node("Conv", "x k", "h", auto_pad="SAME_UPPER", strides=[3, 3]), constants={"k": K}),
    "conv same lower": ends(node("Conv", "x k", "h", auto_pad="SAME_LOWER", strides=[2, 2]), constants={"k": K}),
    "conv grouped": ends(node("Conv", "x k", "h", group=3, dilations=[2, 2]), constants={"k": K[:, :1]}),
    "deconv": ends(
        node("ConvTranspose", "x k", "h", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]), constants={"k": K}
    ),
    "max pool": ends(node("MaxPool", "x", "h", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])),
    "max pool ceil": ends(node("MaxPool", "x", "h", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "average pool": ends(node("AveragePool", "x", "h", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "average pool all": ends(
        node("AveragePool", "x", "h", kernel_shape=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1)
    ),
    "global max": {
        "nodes": [node("GlobalMaxPool", "x", "p"), node("Flatten", "p", "z")], "constants": {}, "opset": 17,
        "given": IMAGE,
    },
    "batch norm": ends(
        node("BatchNormalization", "x a b c d", "h"), constants={"a": ONE, "b": B, "c": B / 3, "d": ONE}
    ),
    "instance norm": ends(
        node("InstanceNormalization", "x a b", "g"), node("Relu", "g", "h"), constants={"a": ONE, "b": B}
    ),
    "lrn": ends(node("LRN", "x", "h", size=3, alpha=0.3)),
    "pad": ends(
        node("Pad", "x w v", "h"), constants={"w": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "v": np.float32(0.5)}
    ),
    "pad reflect": ends(node("Pad", "x w", "h", mode="reflect"), constants={"w": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "pad edge": ends(node("Pad", "x w", "h", mode="edge"), constants={"w": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "resize": ends(
        helper.make_node("Resize", ["x", "", "s"], ["h"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        constants={"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "resize linear": ends(
        helper.make_node("Resize", ["x", "", "", "s"], ["h"], mode="linear"),
        constants={"s": np.array([1, 3, 5, 11])}, given=(1, 3, 8, 8),
    ),
    "depth to space": ends(
        node("Concat", "x x x x", "g", axis=1), node("DepthToSpace", "g", "h", blocksize=2)
    ),
    "depth to space crd": ends(
        node("Concat", "x x x x", "g", axis=1), node("DepthToSpace", "g", "h", blocksize=2, mode="CRD")
    ),
    "transpose": ends(node("Transpose", "x", "h", perm=[0, 1, 3, 2])),
    "slice": ends(
        node("Slice", "x s e a t", "h"),
        constants={"s": np.array([6, 0]), "e": np.array([-(2**62), 7]), "a": np.array([2, 3]), "t": np.array([-2, 3])},
    ),
    "split": ends(
        node("Split", "x s", "a b", axis=3), node("Concat", "b a", "h", axis=2), constants={"s": np.array([4, 4])}
    ),
    "gather": ends(node("Gather", "x i", "h", axis=2), constants={"i": np.array([0, -1, 3])}),
    "shape arithmetic": ends(
        node("Shape", "x", "s"), node("Gather", "s o", "n"), node("Concat", "n r", "t", axis=0),
        node("Reshape", "x t", "h"), constants={"o": np.array([0]), "r": np.array([3, 4, -1])},
    ),
    "expand": ends(
        node("Unsqueeze", "one u", "w"), node("Mul", "x w", "g"), node("Expand", "g e", "h"),
        constants={"one": ONE, "u": np.array([1, 2]), "e": np.array([1, 3, 1, 8])},
    ),
    "tile": ends(node("Tile", "x t", "h"), constants={"t": np.array([1, 1, 2, 1])}),
    "reduce": plain(
        node("ReduceMean", "x", "m", axes=[1]), node("ReduceL2", "x", "l", axes=[1]),
        node("ReduceSumSquare", "x", "q", axes=[1]), node("Concat", "m l q", "z", axis=1), opset=12,
    ),
    "reduce 18": plain(
        node("ReduceMax", "x a", "m"), node("ReduceMin", "x a", "l"), node("ReduceL1", "x a", "q"),
        node("Concat", "m l q", "z", axis=1), constants={"a": np.array([1])}, opset=18,
    ),
    "reduce sum": plain(
        node("ReduceSum", "x a", "s", keepdims=0), node("Unsqueeze", "s a", "t"), node("Sub", "x t", "z"),
        constants={"a": np.array([1])},
    ),
    "softmax": unary("Softmax"),
    "softmax of old": plain(node("Softmax"), opset=11),
    "log softmax": unary("LogSoftmax", axis=1),
    "clip": plain(node("Clip", "x l h"), constants={"l": np.float32(0.2), "h": np.float32(0.7)}),
    "clip of old": plain(node("Clip", min=0.2, max=0.7), opset=9),
    "relu": unary("Relu"), "leaky": unary("LeakyRelu", alpha=0.2), "elu": unary("Elu"), "selu": unary("Selu"),
    "gelu": plain(node("Gelu"), opset=20), "gelu tanh": plain(node("Gelu", approximate="tanh"), opset=20),
    "sigmoid": unary("Sigmoid"), "hard sigmoid": unary("HardSigmoid"), "hard swish": unary("HardSwish"),
    "tanh": unary("Tanh"), "softplus": unary("Softplus"), "softsign": unary("Softsign"), "erf": unary("Erf"),
    "exp": unary("Exp"), "sqrt": unary("Sqrt"), "neg": unary("Neg"), "abs": unary("Abs"), "sin": unary("Sin"),
    "cos": unary("Cos"), "floor": unary("Floor"), "ceil": unary("Ceil"), "sign": unary("Sign"),
    "identity": unary("Identity"), "dropout": unary("Dropout"),
    "log reciprocal": plain(
        node("Add", "x o", "a"), node("Log", "a", "b"), node("Reciprocal", "a", "c"), node("Add", "b c", "z"),
        constants={"o": np.float32(1)},
    ),
    "prelu": plain(node("Sub", "x o", "a"), node("PRelu", "a s", "z"), constants={"o": ONE / 2, "s": B}),
    "pow": plain(node("Pow", "x p"), constants={"p": np.float32(3)}),
    "layer norm": plain(node("LayerNormalization", "x a b"), constants={"a": ONE, "b": B}),
    "matmul": plain(node("MatMul", "x m"), constants={"m": K[0, 0]}),
    "gemm scaled": plain(
        node("Gemm", "x m b", alpha=0.5, beta=2.0, transB=1), constants={"m": K[0, 0], "b": B}
    ),
    "max of three": plain(node("Max", "x a b"), constants={"a": ONE / 3, "b": B}),
    "min mean sum": plain(
        node("Min", "x a", "m"), node("Mean", "x a m", "n"), node("Sum", "n m a", "z"), constants={"a": ONE / 3}
    ),
    "where": plain(
        node("Greater", "x h", "g"), node("Less", "x o", "l"), node("And", "g l", "a"), node("Or", "a g", "c"),
        node("Not", "c", "d"), node("Where", "d x h", "z"), constants={"h": np.float32(0.5), "o": np.float32(0.8)},
    ),
    "cast": plain(
        node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Cast", "d", "f", to=TensorProto.FLOAT),
        node("CastLike", "f x", "z"),
    ),
    "whole division": plain(
        node("Shape", "x", "s"), node("Div", "s t", "q"), node("Cast", "q", "f", to=TensorProto.FLOAT),
        node("Slice", "f a b", "c"), node("Div", "x c", "z"),
        constants={"t": np.array([1, -2]), "a": np.array([1]), "b": np.array([2])},
    ),
    "constant": plain(
        node("Constant", "", "c", value_float=0.3), node("Constant", "", "v", value=tensor("", ONE)),
        node("Mul", "x c", "y"), node("Add", "y v", "z"),
    ),
    "constant of shape": plain(
        node("Shape", "x", "s"), node("ConstantOfShape", "s", "c", value=tensor("", np.array([0.4], np.float32))),
        node("Sub", "x c", "z"),
    ),
    "squeeze": plain(
        node("Unsqueeze", "x a", "u"), node("Squeeze", "u a", "z"), constants={"a": np.array([1])}
    ),
    "squeeze of old": plain(
        node("Unsqueeze", "x", "u", axes=[0, 3]), node("Squeeze", "u", "z", axes=[0, 3]), opset=11
    ),
    "equal": plain(
        node("Equal", "x x", "e"), node("Cast", "e", "f", to=TensorProto.FLOAT), node("Mul", "x f", "z")
    ),
    "upsample": ends(
        node("Upsample", "x s", "h", mode="nearest"), constants={"s": np.array([1, 1, 2, 2], np.float32)}, opset=9
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_in_torch_is_onnxruntimes(tmp_path, name):
    """The torch graph is asked alone, off the probes that let it in; and gradients are those of differences."""
    case = dict(CASES[name])
    given = case.pop("given")
    path = save(tmp_path / "m.onnx", given=given, out=(given[0], 3), **case)
    target = from_onnx(path)
    assert target.access is uf.Access.GRADIENT, target.note
    rows = 1 if given[0] == 1 else 3
    x = torch.rand(rows, *given[1:], generator=torch.Generator().manual_seed(1))
    mine, theirs = target.module.graph(x), target.module.runtime.scores(x.numpy())
    assert np.abs(mine.detach().numpy() - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
    leaf = x.clone().requires_grad_(True)
    z = target.scores(leaf)
    if name in ("floor", "ceil", "sign"):
        return
    (g,) = torch.autograd.grad(z.sum(), leaf)
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    h = 2e-3
    up, down = (float(target.module.graph((x + s * h * d).double().float()).double().sum()) for s in (1, -1))
    assert float((g * d).sum()) == pytest.approx((up - down) / (2 * h), rel=0.05, abs=0.05)


def test_every_operator_that_is_offered_is_tested():
    tested = {n.op_type for case in CASES.values() for n in case["nodes"]}
    assert tested == set(OPERATORS)


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ([node("Round")], "operators Round are not known"),
        ([helper.make_node("FastGelu", ["x"], ["z"], domain="com.microsoft")], "com.microsoft.FastGelu"),
        ([node("Relu", "x", "h"), node("RandomNormalLike", "h", "r"), node("Add", "h r", "z")], "RandomNormalLike"),
    ],
)
def test_what_torch_does_not_know_is_attacked_through_scores_and_said(tmp_path, nodes, word):
    path = tmp_path / "m.onnx"
    save(path, nodes, out=("n", 4))
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    target = from_onnx(path)
    assert target.access is uf.Access.SCORES and word in target.note and target.note.endswith(".")
    assert target.scores(torch.rand(2, 4)).shape == (2, 4)


def test_a_graph_that_disagrees_is_not_used(tmp_path, monkeypatch):
    path = save(tmp_path / "m.onnx", [node("Tanh")], out=("n", 4))
    monkeypatch.setitem(OPERATORS, "Tanh", lambda i, a, o: i[0].tanh() * 1.01)
    target = from_onnx(path)
    assert target.access is uf.Access.SCORES and "differ by" in target.note
    monkeypatch.setitem(OPERATORS, "Tanh", lambda i, a, o: i[0].nope())
    assert "fails (AttributeError)" in from_onnx(path).note


def test_an_evaluation_says_why_there_were_no_gradients(tmp_path):
    path = save(tmp_path / "m.onnx", [node("Gemm", "x w b", "h", transB=1), node("Round", "h", "r"),
                                      node("Sum", "r h", "z")], {"w": W, "b": B})  # fmt: skip
    x, y = linear_points(EXACT, (4,), 8, "linf", 0.1)
    y = from_onnx(path).scores(x).argmax(1)
    result = uf.evaluate(from_onnx(path), x, y, "linf(0.3)", suite="quick")
    assert result.count(uf.Status.BROKEN) >= 6
    assert any("asked for its scores alone" in note and "Round" in note for note in result.notes)


# --- shapes, outputs, precision ---------------------------------------------------------------------------------------


def test_images_go_in_flat_and_channels_last(tmp_path):
    nodes = [node("ReduceMean", "x", "z", axes=[1, 2], keepdims=0)]
    target = from_onnx(save(tmp_path / "last.onnx", nodes, given=("n", 5, 6, 3), opset=12))
    x = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(target.scores(x), x.mean((2, 3)))
    flat = from_onnx(save(tmp_path / "flat.onnx", [node("Identity")], given=(1, 12, 1), out=(1, 12, 1)))
    assert flat.module.runtime.shaped(torch.rand(3, 1, 3, 4)).shape == (3, 12, 1)
    with pytest.raises(TargetError) as error:
        target.scores(torch.rand(2, 4, 5))
    assert "takes inputs of shape 5 x 6 x 3; these are 4 x 5" in said(error)
    with pytest.raises(TargetError):  # as many values, in an order that nobody said
        from_onnx(save(tmp_path / "odd.onnx", nodes, given=("n", 9, 4, 3), opset=12)).scores(torch.rand(2, 6, 6, 3))


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.DOUBLE, np.float64), (TensorProto.FLOAT16, np.float16)])
def test_other_precisions(tmp_path, kind, dtype):
    nodes = [node("MatMul", "x w")]
    path = save(tmp_path / "m.onnx", nodes, {"w": W.T.astype(dtype)}, kind=kind)
    z = from_onnx(path).scores(torch.rand(5, 4))
    assert z.numpy().dtype == dtype and z.shape == (5, 3)


def test_the_output_of_scores_is_found_or_asked_for(tmp_path):
    def two(names, kinds):
        graph = helper.make_graph(
            [node("Relu", "x", names[0]), node("ArgMax" if kinds[1] == 7 else "Abs", "x", names[1])],
            "g",
            [helper.make_tensor_value_info("x", 1, ("n", 4))],
            [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "two.onnx")
        return tmp_path / "two.onnx"

    x = torch.rand(2, 4) - 0.5
    torch.testing.assert_close(from_onnx(two(("a", "label"), (1, 7))).scores(x), x.relu())
    torch.testing.assert_close(from_onnx(two(("a", "Logits"), (1, 1))).scores(x), x.abs())
    path = two(("a", "b"), (1, 1))
    with pytest.raises(InputError) as error:
        from_onnx(path)
    assert "output=" in said(error)
    torch.testing.assert_close(from_onnx(path, output="b").scores(x), x.abs())
    with pytest.raises(InputError) as error:
        from_onnx(path, output="bb")
    assert "named 'bb'" in said(error) and "'b'" in said(error)


def test_a_file_of_dictionaries_is_read(tmp_path):
    zip_map = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    row = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    graph = helper.make_graph(
        [zip_map],
        "g",
        [helper.make_tensor_value_info("x", 1, ("n", 4))],
        [helper.make_value_info("z", helper.make_sequence_type_proto(row))],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), tmp_path / "m.onnx")
    target, x = from_onnx(tmp_path / "m.onnx"), torch.rand(3, 4)
    assert torch.equal(target.scores(x), x) and target.access is uf.Access.SCORES and "dictionaries" in target.note


def test_inputs_that_are_no_single_tensor_are_refused(tmp_path):
    whole = save(tmp_path / "int.onnx", [node("Cast", to=TensorProto.INT64)], kind=TensorProto.INT64)
    with pytest.raises(InputError) as error:
        from_onnx(whole)
    assert "floating-point" in said(error)
    value = save(tmp_path / "none.onnx", [node("Relu")], given=(), out=())
    with pytest.raises(InputError) as error:
        from_onnx(value)
    assert "batch axis" in said(error)


# --- files are data ---------------------------------------------------------------------------------------------------


def external(folder: Path, place: str) -> Path:
    """A file whose weights lie in `place`."""
    path = linear(folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for t in model.graph.initializer:
        for entry in t.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_file_are_read(tmp_path):
    target = from_onnx(external(tmp_path, "w.bin"))
    x = torch.rand(3, 4)
    torch.testing.assert_close(target.scores(x), x @ torch.from_numpy(W).T + torch.from_numpy(B))
    assert target.access is uf.Access.GRADIENT


@pytest.mark.parametrize("how", ["../w.bin", "absolute", "link", "folder link", "sub/../../w.bin", "", "none.bin"])
def test_external_data_elsewhere_are_refused(tmp_path, how):
    inner = tmp_path / "model"
    inner.mkdir()
    place = str(tmp_path / "w.bin") if how == "absolute" else how
    if how == "link":
        place = "linked.bin"
        (inner / place).symlink_to(tmp_path / "w.bin")
    elif how == "folder link":
        place = "up/w.bin"
        (inner / "up").symlink_to(tmp_path)
    path = external(inner, place)
    (tmp_path / "w.bin").write_bytes((inner / "w.bin").read_bytes())
    with pytest.raises(InputError) as error:
        from_onnx(path)
    assert "outside its folder" in said(error) or "no such file" in said(error)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("length", "99999"), ("offset", "x"), ("length", "-1")])
def test_external_data_that_do_not_fit_are_refused(tmp_path, key, value):
    path = external(tmp_path, "w.bin")
    model = onnx.load(path, load_external_data=False)
    for t in model.graph.initializer:
        kept = [e for e in t.external_data if e.key != key]
        del t.external_data[:]
        t.external_data.extend(kept)
        t.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as error:
        from_onnx(path)
    assert "do not fit" in said(error)


def test_tensors_hidden_in_nodes_and_graphs_are_looked_at_too(tmp_path):
    outside = tensor("t", W)
    outside.data_location = TensorProto.EXTERNAL
    outside.ClearField("raw_data")
    outside.external_data.add(key="location", value="../../../etc/hostname")
    deep = helper.make_graph([node("Constant", "", "z", value=outside)], "g", [],
                             [helper.make_tensor_value_info("z", 1, None)])  # fmt: skip
    for nodes in (
        [node("Constant", "", "c", value=outside), node("Identity")],
        [node("Constant", "", "yes", value=tensor("", np.array(True))),
         helper.make_node("If", ["yes"], ["z"], then_branch=deep, else_branch=deep)],
    ):  # fmt: skip
        path = save(tmp_path / "m.onnx", nodes)
        with pytest.raises(InputError) as error:
            from_onnx(path)
        assert "outside its folder" in said(error)


def test_operators_of_other_libraries_are_refused(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Evil", ["x"], ["z"], domain="evil")])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("evil", 1))
    onnx.save(model, path)
    with pytest.raises(InputError) as error:
        from_onnx(path)
    assert "cannot run m.onnx" in said(error)


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    whole = linear(tmp_path / "m.onnx").read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        bent = bytearray(whole)
        bent[at] ^= 0xFF
        for data in (whole[:at], bytes(bent)):
            (tmp_path / "bad.onnx").write_bytes(data)
            try:
                z = from_onnx(tmp_path / "bad.onnx").scores(torch.rand(2, 4))
            except (InputError, TargetError) as error:
                assert "\n" not in str(error)
            else:
                assert z.shape[0] == 2  # a bit of a weight or of a name
    with pytest.raises(InputError) as error:
        from_onnx(tmp_path / "mm.onnx")
    assert "no ONNX file" in said(error) and "'m.onnx'" in said(error)


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    import sys

    path = linear(tmp_path / "m.onnx")
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtra) as error:
                from_onnx(path)
            assert "unfooled[onnx]" in said(error)


def test_two_files_do_not_pass_for_one_another(tmp_path):
    a, b = from_onnx(linear(tmp_path / "a.onnx")), from_onnx(linear(tmp_path / "b.onnx"))
    other = save(tmp_path / "c.onnx", [node("Gemm", "x w b", transB=1)], {"w": W + 1, "b": B})
    assert a.fingerprint() == b.fingerprint() != from_onnx(other).fingerprint()


# --- a real file, and the command line --------------------------------------------------------------------------------


@pytest.fixture
def mnist_file(outside_data, tmp_path):
    packed = outside_data / "models" / "mnist-net_256x2.onnx.gz"
    if not packed.is_file():
        pytest.skip(f"there is no {packed.name} among the outside data")
    (tmp_path / "mnist.onnx").write_bytes(gzip.decompress(packed.read_bytes()))
    return tmp_path / "mnist.onnx"


def test_a_real_file_of_batch_size_one(mnist_file, outside_data):
    target, data = from_onnx(mnist_file), uf.load_data("mnist", limit=300, data_dir=outside_data)
    assert target.batch == 1 and target.access is uf.Access.GRADIENT
    with torch.no_grad():
        right = float((target.scores(data.x).argmax(1) == data.y).float().mean())
    assert right == pytest.approx(0.981, abs=0.02)  # 98.1% on all 10,000
    for attack, least in (("apgd(steps=20, loss='margin')", 0.6), ("square(queries=150)", 0.3)):
        found = uf.run(attack, target, data.x[:16], data.y[:16], uf.linf(0.06))
        session = ort.InferenceSession(str(mnist_file), providers=["CPUExecutionProvider"])
        for i in np.flatnonzero(found.success.numpy()):
            given = found.x_adv[i].reshape(1, 784, 1).numpy()
            assert session.run(None, {"0": given})[0].argmax() != int(data.y[i])
        assert float(found.success.float().mean()) >= least


def test_the_command_line_takes_a_file(tmp_path, capsys):
    path = linear(tmp_path / "model.onnx")
    x, y = linear_points(EXACT, (4,), 10, "linf", 0.1)
    np.savez(tmp_path / "data.npz", images=x.numpy(), labels=y.numpy())
    words = ["evaluate", str(path), str(tmp_path / "data.npz"), "--threat", "linf(0.11)", "--no-curve", "--json"]
    assert _app.call([*words, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["broken"] == 10
    assert _app.call(["verify", str(tmp_path / "out")]) == 0
    assert resolve(path, classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    assert _app.call(["evaluate", str(tmp_path / "modle.onnx")]) == 2
    assert "'model.onnx'" in capsys.readouterr().err


def test_nothing_is_written_beside_the_file(tmp_path):
    linear(tmp_path / "m.onnx")
    before = sorted(os.listdir(tmp_path))
    from_onnx(tmp_path / "m.onnx").scores(torch.rand(2, 4))
    assert sorted(os.listdir(tmp_path)) == before
