"""Transfer: points on identical, on tilted and on unrelated targets, against what linear algebra says."""

from typing import Any

import pytest
import torch
from torch import Tensor

import unfooled as uf
from unfooled.core.access import Access
from unfooled.core.target import Target
from unfooled.explain.transfer import agreement, alike, transfer
from unfooled.testing import Linear, Spy


def planes(weight: Tensor) -> Linear:
    """Two classes on both sides of <w, x - 1/2> = 0."""
    w = torch.stack([-weight, weight]) / 2
    return Linear(w, -w.sum(1) / 2)


def over(weight: Tensor, x: Tensor, by: float = 1.2) -> Tensor:
    """Each x moved straight across the plane of `planes(weight)`, to `by` times its distance."""
    gap = (x - 0.5) @ weight
    return x - by * (gap / weight.square().sum()).view(-1, 1) * weight


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    luck = torch.Generator().manual_seed(0)
    w, v = torch.randn(2, 40, generator=luck)
    x = torch.rand(300, 40, generator=luck) * 0.4 + 0.3
    target = planes(w)
    return {"w": w, "v": v, "x": x, "y": target(x).argmax(1).detach(), "target": target, "x_adv": over(w, x)}


def test_a_copy_is_fooled_by_every_point_into_the_same_class(scene: dict[str, Any]) -> None:
    out = transfer(scene["x"], scene["x_adv"], scene["y"], {"one": scene["target"], "copy": planes(scene["w"])})
    for row in out.rows():
        assert (row["n"], row["fooled"], row["same"]) == (300, 1.0, 1.0)
    assert out.rows()[1]["noise"] < 0.4, "noise of the same size must not do as well"


@pytest.mark.parametrize("tilt", [0.0, 0.3, 0.8, 1.0])
def test_a_tilted_plane_is_fooled_exactly_where_the_point_crosses_it(scene: dict[str, Any], tilt: float) -> None:
    u = (1 - tilt) * scene["w"] + tilt * scene["v"]
    out = transfer(scene["x"], scene["x_adv"], scene["y"], {"one": scene["target"], "tilted": planes(u)})
    side, after = (((points - 0.5) @ u > 0).long() for points in (scene["x"], scene["x_adv"]))
    right = side == scene["y"]
    assert torch.equal(out.asked[1], right)
    assert torch.equal(out.fooled[1], right & (after != scene["y"]))
    assert out.rows()[1]["n"] == int(right.sum())


def test_an_unrelated_target_is_fooled_as_often_as_by_noise(scene: dict[str, Any]) -> None:
    w, v = scene["w"], scene["v"]
    v = v - (v @ w) / w.square().sum() * w  # orthogonal: the points do not move towards its plane at all
    other = planes(v)
    out = transfer(scene["x"], scene["x_adv"], scene["y"], {"one": scene["target"], "other": other}, draws=20)
    row = out.rows()[1]
    assert row["fooled"] == 0 and row["noise"] < 0.5
    luck = torch.Generator().manual_seed(3)
    nets = {str(i): Linear.random((200,), 10, seed=i) for i in range(4)}
    x = torch.rand(400, 200, generator=luck)
    y = nets["0"](x).argmax(1).detach()
    same = torch.full((400,), 7)
    pushed = (x + 0.08 * (nets["0"].weight[same] - nets["0"].weight[y]).sign()).clamp(0, 1).detach()
    got = transfer(x, pushed, y, nets, draws=20).rows()
    assert got[0]["fooled"] > 0.9
    for row in got[1:]:  # the same points count, and they are random to these targets
        assert row["n"] > 20 and abs(row["fooled"] - row["noise"]) < 0.2


def test_the_same_wrong_class_is_that_of_the_source() -> None:
    def leading_to(wrong: int) -> Linear:  # class 0 where the first value is small, else the wrong one
        weight = torch.zeros(3, 2)
        weight[wrong, 0] = 2.0
        bias = torch.full((3,), -9.0)
        bias[0], bias[wrong] = 1.0, 0.0
        return Linear(weight, bias)

    x, y = torch.full((6, 2), 0.2), torch.zeros(6, dtype=torch.int64)
    nets = {"source": leading_to(1), "alike": leading_to(1), "other": leading_to(2)}
    rows = transfer(x, torch.full((6, 2), 0.8), y, nets).rows()
    assert [(r["fooled"], r["same"]) for r in rows] == [(1.0, 1.0), (1.0, 1.0), (1.0, 0.0)]
    assert rows[2]["same_high"] < 0.5 < rows[1]["same_low"]


def test_only_points_that_fool_their_source_and_inputs_that_are_right_count(scene: dict[str, Any]) -> None:
    x_adv = torch.where((torch.arange(300) < 100).view(-1, 1), scene["x_adv"], scene["x"])
    y = scene["y"].clone()
    y[:10] = 1 - y[:10]  # both targets are wrong about these
    row = transfer(scene["x"], x_adv, y, {"one": scene["target"], "copy": planes(scene["w"])}).rows()[1]
    assert (row["n"], row["fooled"]) == (90, 1.0)


def test_the_sentence_says_why_nothing_is_known(scene: dict[str, Any]) -> None:
    nets = {"one": scene["target"], "blind": planes(-scene["w"])}
    assert "no other target is right" in transfer(scene["x"], scene["x_adv"], scene["y"], nets).sentence()
    assert "none of the points" in transfer(scene["x"], scene["x"], scene["y"], nets).sentence()


def test_noise_has_the_size_of_the_change_and_belongs_to_the_example(scene: dict[str, Any]) -> None:
    x, x_adv = scene["x"], scene["x_adv"]
    shaken = alike(x, x_adv, 5, (0.0, 1.0))
    size, wanted = (shaken - x).flatten(2).norm(dim=2), (x_adv - x).norm(dim=1)
    assert torch.allclose(size, wanted.expand_as(size), rtol=1e-4)
    assert torch.equal(alike(x[7:8], x_adv[7:8], 5, (0.0, 1.0))[:, 0], shaken[:, 7])
    corner = torch.zeros(1, 40)  # every second direction leaves the box here, none of the mirrored ones does
    out = alike(corner, corner + 0.1, 3, (0.0, 1.0))
    assert bool((out >= 0).all()) and torch.allclose(out.norm(dim=2), torch.tensor(0.1 * 40**0.5), rtol=1e-4)


def test_one_example_tells_labels_and_confidences(scene: dict[str, Any]) -> None:
    x, x_adv, y = scene["x"][:1], scene["x_adv"][:1], scene["y"][:1]
    named = Target(scene["target"], name="one", classes=["left", "right"])
    labels = Target(planes(scene["w"]), access=Access.LABEL)
    out = transfer(x, x_adv, y, {"one": named, "labels": labels, "blind": planes(-scene["w"])})
    first, second, third = out.rows()
    expected = scene["target"](x_adv).softmax(1).max().item()
    assert first["confidence"] == pytest.approx(expected, abs=1e-6)
    assert first["label"] == ["left", "right"][1 - int(y)]
    assert second["confidence"] is None and second["fooled"] == 1.0
    assert third["n"] == 0 and third["fooled"] is None, "a target that is wrong before is not fooled"
    assert "1 of 1 other targets, 1 into the same class" in out.sentence()
    assert out.image("png").startswith(b"\x89PNG")


def test_agreement_is_the_transfer_of_every_source(scene: dict[str, Any]) -> None:
    x, y, w, v = (scene[k] for k in ("x", "y", "w", "v"))
    nets = {"one": planes(w), "near": planes(0.8 * w + 0.2 * v), "far": planes(v)}
    points = {"one": over(w, x), "near": over(0.8 * w + 0.2 * v, x)}
    out = agreement(nets, points, x, y)
    assert [(r["source"], r["target"]) for r in out.rows()] == [(s, t) for s in points for t in nets]
    assert out.rows()[:3] == transfer(x, points["one"], y, nets).rows()
    assert out.rows()[1]["fooled"] > out.rows()[2]["fooled"]
    assert "5 pairs" not in out.sentence() and "4 pairs" in out.sentence()
    assert out.image() == agreement(nets, points, x, y).image()


def test_agreement_takes_the_runs_of_a_transfer_matrix(scene: dict[str, Any]) -> None:
    x, y = scene["x"][:40], scene["y"][:40]
    nets = {"one": scene["target"], "tilted": planes(0.7 * scene["w"] + 0.3 * scene["v"])}
    matrix = uf.transfer_matrix(nets, "fgsm()", x, y, uf.linf(0.2))
    out = agreement(nets, dict(zip(matrix.sources, matrix.runs, strict=True)), x, y)
    for row in out.rows():
        cell = matrix.cell(row["source"], row["target"])
        assert (row["n"], row["fooled"], row["same"]) == (cell.n, cell.rate, cell.same_rate)


def test_the_world_is_untouched_and_the_same_seed_gives_the_same(scene: dict[str, Any]) -> None:
    before, spy = torch.get_rng_state(), Spy(scene["target"])
    a = transfer(scene["x"], scene["x_adv"], scene["y"], {"one": spy}, draws=4, seed=1)
    assert torch.equal(before, torch.get_rng_state()) and spy.training
    assert spy.forward_rows == 300 * (1 + 1 + 4) and spy.backward_rows == 0
    b = transfer(scene["x"], scene["x_adv"], scene["y"], {"one": scene["target"]}, draws=4, seed=1)
    assert torch.equal(a.noise, b.noise) and a.rows() == b.rows()


def test_bad_input(scene: dict[str, Any]) -> None:
    x, x_adv, y, nets = scene["x"], scene["x_adv"], scene["y"], {"one": scene["target"]}
    for wrong, word in (
        (lambda: transfer(x, x_adv, y, {}), "at least one target"),
        (lambda: transfer(x, x_adv[:3], y, nets), "shape"),
        (lambda: transfer(x, x_adv, y[:3], nets), "label"),
        (lambda: transfer(x, x_adv, y, nets, source="two"), "'two'"),
        (lambda: transfer(x, x_adv, y, nets, draws=0), "draws"),
        (lambda: agreement(nets, {}, x, y), "source"),
        (lambda: agreement(nets, {"two": x_adv}, x, y), "'two'"),
    ):
        with pytest.raises(uf.InputError, match=word):
            wrong()
