"""Rounds of retraining: fooling images become a class, and both outcomes can be told apart."""

import importlib

import pytest
import torch
from torch import Tensor, nn

from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.fooling.rounds import rounds


def plane(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes in a small part of the plane: left and right of 0.5, both between 0.4 and 0.6 in height."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.rand(n, 2, generator=generator) * 0.2 + torch.stack([0.1 + 0.6 * y, torch.full((n,), 0.4)], 1)
    return x, y


def module(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, classes))


def corners(target: Target, seed: int) -> tuple[Tensor, Tensor]:
    """The most confident of many points far above the data, one for each of the first two classes."""
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 0.2]) + torch.tensor(
        [0, 0.8]
    )
    with torch.no_grad():
        sure, at = target.scores(x).softmax(1)[:, :2].max(0)
    return x[at], sure


X, Y = plane(300, 0)
TEST = plane(200, 1)
SETTINGS = {"test": TEST, "epochs": 8, "batch_size": 32, "lr": 0.02}


def test_where_fooling_images_are_apart_from_the_data_the_next_evolution_fails():
    seen = []
    got = rounds(module, X, Y, corners, rounds=2, seed=1, on_round=seen.append, **SETTINGS)
    first, *_, last = got.rows()
    assert first["median confidence"] > 0.95 and first["old fooling images refused"] is None
    assert last["median confidence"] < 0.3 and last["old fooling images refused"] == 1
    assert min(row["clean accuracy"] for row in got.rows()) > 0.97 and last["natural images refused"] < 0.03
    assert [row["trained on fooling images"] for row in got.rows()] == [0, 2, 4]
    assert list(got.each) == seen and len({tuple(row) for row in got.rows()}) == 1
    assert "after 2 rounds" in got.sentence() and "100.0% of the older fooling images are refused" in got.sentence()


def test_where_the_search_has_other_places_to_go_nothing_is_won():
    def elsewhere(target: Target, seed: int) -> tuple[Tensor, Tensor]:  # far off, each time in another direction
        turn = 2 * torch.pi * torch.rand(200, generator=torch.Generator().manual_seed(seed))
        x = 40 * torch.stack([turn.cos(), turn.sin()], 1)
        with torch.no_grad():
            sure, at = target.scores(x).softmax(1)[:, :2].max(0)
        return x[at], sure

    got = rounds(module, X, Y, elsewhere, rounds=2, seed=1, **SETTINGS)
    assert min(row["median confidence"] for row in got.rows()) > 0.9


def test_fooling_images_are_as_many_as_a_class_and_labelled_with_the_next_number(monkeypatch):
    trained, outputs = [], []

    def spy(module, x, y, **settings):
        trained.append((x, y, settings["seed"]))
        outputs.append(module[-1].out_features)

    monkeypatch.setattr(importlib.import_module("unfooled.fooling.rounds"), "fit", spy)
    rounds(module, X, Y, corners, rounds=2, seed=5, **SETTINGS)
    assert [len(x) for x, _, _ in trained] == [300, 450, 450] and [seed for _, _, seed in trained] == [5, 6, 7]
    assert outputs == [2, 3, 3]
    x, y, _ = trained[2]
    assert torch.equal(x[:300], X) and torch.equal(y[:300], Y) and bool((y[300:] == 2).all())
    assert len(torch.unique(x[300:], dim=0)) == 4, "all rounds so far"


@pytest.mark.usefixtures("same_luck")
def test_the_same_seed_gives_the_same_bits_and_a_figure():
    one, again, other = (rounds(module, X, Y, corners, rounds=1, seed=s, **SETTINGS) for s in (3, 3, 4))
    assert one.rows() == again.rows() != other.rows()
    assert all(torch.equal(a.images, b.images) for a, b in zip(one.each, again.each, strict=True))
    pytest.importorskip("matplotlib")
    assert one.image("png", dpi=40).startswith(b"\x89PNG") and one.image("svg") == again.image("svg")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"y": Y[:5]}, "as many images as integer labels"),
        ({"y": Y.float()}, "as many images as integer labels"),
        ({"evolve": lambda target, seed: (torch.rand(3, 5), torch.rand(3))}, "expected [m, 2] and [m]"),
        ({"evolve": lambda target, seed: (torch.rand(3, 2), torch.rand(4))}, "expected [m, 2] and [m]"),
        ({"test": (TEST[0], TEST[1][:7])}, "test must be"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(changed, said):
    settings = {"x": X, "y": Y, "evolve": corners, "rounds": 1, **SETTINGS, "epochs": 1} | changed
    with pytest.raises(InputError) as error:
        rounds(module, **settings)
    assert said in str(error.value)
