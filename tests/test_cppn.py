"""Pattern networks: what they draw against the closed form, and what mutation may and may not do."""

import colorsys
import math

import pytest
import torch
from torch import Tensor

from unfooled.errors import InputError
from unfooled.parametrise import cppn

X, Y, D, ONE = range(4)
CODE = {name: i for i, name in enumerate(cppn.FUNCTIONS)}


def luck(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empty(p: int, hidden: int, outputs: int) -> cppn.Genomes:
    shape = (p, 4 + hidden, hidden + outputs)
    return cppn.Genomes(
        torch.zeros(shape, dtype=torch.float64),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(p, hidden + outputs, dtype=torch.int64),
        torch.full((p, hidden), 2.0, dtype=torch.float64),
    )


def link(genomes: cppn.Genomes, row: int, source: int, sink: int, weight: float) -> None:
    genomes.weight[row, source, sink] = weight
    genomes.linked[row, source, sink] = True


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    y = (2 * torch.arange(height) + 1)[:, None] / height - 1
    x = (2 * torch.arange(width) + 1)[None, :] / width - 1
    return x.expand(height, width), y.expand(height, width)


def grown(p: int, hidden: int, outputs: int, generations: int, seed: int = 0) -> cppn.Genomes:
    generator = luck(seed)
    genomes = cppn.first(p, hidden, outputs, generator)
    for _ in range(generations):
        genomes = cppn.mutated(genomes, generator)
    return genomes


def two_nodes() -> cppn.Genomes:
    """Slot 2 = sin(2x + y), before slot 0 = exp of minus its square; the output is tanh(slot 0 - 0.5 d + 0.25)."""
    genomes = empty(1, 3, 1)
    genomes.place[0, 2], genomes.place[0, 0] = 0.2, 0.7
    for source, sink, weight in ((X, 2, 2.0), (Y, 2, 1.0), (4 + 2, 0, 1.5), (4 + 0, 3, 1.0), (D, 3, -0.5)):
        link(genomes, 0, source, sink, weight)
    link(genomes, 0, ONE, 3, 0.25)
    genomes.weight[0, X, 3] = 9.0  # not linked
    genomes.function[0] = torch.tensor([CODE["gaussian"], 0, CODE["sine"], CODE["sigmoid"]])
    return genomes


def test_a_hand_set_network_draws_its_closed_form() -> None:
    x, y = grid(6, 9)
    bell = 2 * torch.exp(-((1.5 * torch.sin(2 * x + y)) ** 2)) - 1
    wanted = (torch.tanh(bell - 0.5 * torch.hypot(x, y) + 0.25) + 1) / 2
    assert torch.allclose(cppn.pictures(two_nodes(), 6, 9)[0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("linear", lambda z: max(-1.0, min(1.0, z))),
        ("sine", math.sin),
        ("cosine", math.cos),
        ("gaussian", lambda z: 2 * math.exp(-z * z) - 1),
        ("sigmoid", math.tanh),
        ("absolute", lambda z: 2 * min(1.0, abs(z)) - 1),
    ],
)
def test_every_function_is_the_one_of_its_name(name: str, compute) -> None:
    genomes = empty(1, 0, 1)
    link(genomes, 0, X, 0, 2.5)
    genomes.function[0, 0] = CODE[name]
    x, _ = grid(1, 11)
    wanted = [(compute(2.5 * float(v)) + 1) / 2 for v in x[0]]
    assert cppn.pictures(genomes, 1, 11)[0, 0, 0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert set(CODE) == {"linear", "sine", "cosine", "gaussian", "sigmoid", "absolute"}


def test_the_same_network_drawn_larger_is_the_same_picture() -> None:
    genomes = grown(16, 8, 1, 12)
    small, large = cppn.pictures(genomes, 8, 10), cppn.pictures(genomes, 24, 30)
    assert torch.allclose(large[:, :, 1::3, 1::3], small, atol=1e-4)  # the centre of a pixel's nine is its centre
    assert float((large[:, :, ::3, ::3] - small).abs().max()) > 0.01


def test_a_picture_does_not_depend_on_the_population() -> None:
    genomes = grown(33, 8, 3, 12)
    together = cppn.pictures(genomes, 7, 9)
    for i in (0, 16, 32):
        alone = cppn.pictures(genomes.take(torch.tensor([i])), 7, 9)
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    assert len(cppn.pictures(genomes.take(torch.tensor([], dtype=torch.int64)), 7, 9)) == 0


def test_large_pictures_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    genomes = grown(10, 6, 1, 6)
    whole = cppn.pictures(genomes, 6, 6)
    monkeypatch.setattr(cppn, "_AT_ONCE", 1000)
    assert torch.allclose(cppn.pictures(genomes, 6, 6), whole, atol=1e-6)


def test_colours_are_those_of_hue_saturation_and_value() -> None:
    genomes = grown(4, 6, 3, 6)
    hsv, rgb = cppn.pictures(genomes, 5, 5, colour="rgb"), cppn.pictures(genomes, 5, 5)
    for pixel, made in zip(hsv.permute(0, 2, 3, 1).reshape(-1, 3), rgb.permute(0, 2, 3, 1).reshape(-1, 3), strict=True):
        assert made.tolist() == pytest.approx(colorsys.hsv_to_rgb(*pixel.tolist()), abs=1e-5)


def test_they_begin_without_hidden_nodes_and_grow() -> None:
    young, old = grown(64, 16, 1, 0), grown(64, 16, 1, 20)
    assert not bool(young.present.any())
    assert bool(young.linked[:, :4, 16:].all()) and int(young.linked.sum()) == 64 * 4
    nodes = old.present.sum(1).float()
    assert 1 < float(nodes.mean()) < 8
    assert float(old.linked.sum((1, 2)).float().mean()) > 6


def circles(genomes: cppn.Genomes) -> int:
    """Number of networks in which a node reaches itself, by powers of the matrix of hidden nodes alone."""
    hidden = genomes.place.shape[1]
    step = genomes.linked[:, 4:, :hidden].double()
    reached, found = step.clone(), torch.zeros(len(genomes), dtype=torch.bool)
    for _ in range(hidden):
        found |= reached.diagonal(dim1=1, dim2=2).sum(1) > 0
        reached = (reached @ step > 0).double()
    return int(found.sum())


def test_mutation_makes_no_circle_and_links_present_nodes_alone() -> None:
    genomes = grown(200, 6, 3, 60)  # long enough that all slots are in use
    assert bool(genomes.present.all(1).any())
    assert circles(genomes) == 0
    known = torch.cat([torch.ones(200, 4, dtype=torch.bool), genomes.present], 1)
    assert not bool((genomes.linked & ~known[:, :, None]).any())
    assert not bool((genomes.linked[:, :, :6] & ~genomes.present[:, None, :]).any())
    assert bool(genomes.weight[genomes.linked].abs().max() <= 8)
    tied = empty(1, 2, 1)
    tied.place[0] = torch.tensor([0.3, 0.6], dtype=torch.float64)
    link(tied, 0, 4, 1, 1.0)
    link(tied, 0, 5, 0, 1.0)
    assert circles(tied) == 1


def test_splitting_a_connection_keeps_the_way_and_the_weight() -> None:
    before = empty(8, 2, 1)
    for row in range(8):
        link(before, row, X, 2, -0.75)
    only = cppn.Growth(weights=0, functions=0, add_node=1, add_link=0, remove_link=0)
    after = cppn.mutated(before, luck(), only)
    assert bool((after.present.sum(1) == 1).all())
    assert bool((after.weight[:, X, 0] == 1).all()) and bool(after.linked[:, X, 0].all())
    assert bool((after.weight[:, 4, 2] == -0.75).all()) and not bool(after.linked[:, X, 2].any())
    assert bool(((after.place[:, 0] >= 0.25) & (after.place[:, 0] <= 0.75)).all())


def test_a_node_that_leads_nowhere_frees_its_slot() -> None:
    genomes = two_nodes()
    genomes.linked[0, 4 + 0, 3] = False
    still = cppn.Growth(weights=0, functions=0, add_node=0, add_link=0, remove_link=0)
    once = cppn.mutated(genomes, luck(), still)
    assert once.present.tolist() == [[False, False, True]]
    assert cppn.mutated(once, luck(), still).present.tolist() == [[False, False, False]]


@pytest.mark.parametrize(("name", "changed"), [("add_link", 1), ("remove_link", -1)])
def test_one_connection_comes_or_goes(name: str, changed: int) -> None:
    none = {"weights": 0.0, "functions": 0.0, "add_node": 0.0, "add_link": 0.0, "remove_link": 0.0}
    before = empty(50, 2, 2)
    for row in range(50):
        link(before, row, X, 2, 1.0)
        link(before, row, Y, 3, 1.0)
    after = cppn.mutated(before, luck(), cppn.Growth(**(none | {name: 1.0})))
    assert bool((after.linked.sum((1, 2)) == 2 + changed).all())
    assert bool(((after.linked ^ before.linked).sum((1, 2)) == 1).all())


def test_same_seed_same_bits_and_packing_loses_nothing() -> None:
    one, two, other = grown(20, 5, 3, 9), grown(20, 5, 3, 9), grown(20, 5, 3, 9, seed=1)
    assert one.packed().equal(two.packed()) and not one.packed().equal(other.packed())
    again = cppn.unpacked(one.packed(), 5, 3)
    for name in ("weight", "linked", "function", "place"):
        assert getattr(again, name).equal(getattr(one, name))
    with pytest.raises(InputError, match=r"has \d+ numbers, not \(7,\)"):
        cppn.unpacked(torch.zeros(2, 7), 5, 3)
