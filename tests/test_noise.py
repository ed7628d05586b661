"""Luck: it belongs to the example, and is as uniform, normal and fair as it says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from unfooled._noise import Noise, example_ids, row_keys, text_key


def noise(n: int, seed: int = 0, recipe: str = "r", restart: int | np.ndarray = 0) -> Noise:
    return Noise(torch.from_numpy(row_keys(seed, np.arange(n), recipe, restart)))


KINDS = ("uniform", "normal", "signs", "integers")


def draw(luck: Noise, kind: str, step: Tensor | int = 0, salt: int = 0) -> Tensor:
    if kind == "integers":
        return luck.integers(step, 10, salt)
    values: Tensor = getattr(luck, kind)(step, (3, 5), salt)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_draws_the_same_alone_in_any_batch_and_order(kind: str) -> None:
    ids = np.array([5, -3, 2**62, 0, 7, -(2**63)])
    keys = torch.from_numpy(row_keys(9, ids, "pgd()"))
    whole = draw(Noise(keys), kind, 4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(draw(Noise(keys[order]), kind, 4), whole[order])
    for i in range(6):
        assert torch.equal(draw(Noise(keys[i : i + 1]), kind, 4), whole[i : i + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_their_own_steps_draw_what_they_would_together(kind: str) -> None:
    luck, steps = noise(5), torch.tensor([0, 3, 3, 1, 200])
    mixed = draw(luck, kind, steps)
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(mixed[i], draw(luck, kind, step)[i])


def test_seed_example_recipe_restart_step_and_salt_all_change_the_draw() -> None:
    base = noise(4).uniform(0, (6,))
    others = [
        noise(4, seed=1).uniform(0, (6,)),
        noise(4, seed=-1).uniform(0, (6,)),
        noise(4, recipe="s").uniform(0, (6,)),
        noise(4, restart=1).uniform(0, (6,)),
        noise(4).uniform(1, (6,)),
        noise(4).uniform(0, (6,), salt=1),
    ]
    seen = torch.cat([base, *others]).flatten()
    assert len(seen.unique()) >= len(seen) - 1  # 24-bit numbers: 168 of them seldom meet
    rows = noise(50).uniform(0, (4,))
    assert len(rows.unique(dim=0)) == 50


def test_no_two_draws_share_a_counter() -> None:
    """Steps and salts do not run into each other: (step 0, salt 63) is not (step 1, salt 0)."""
    luck = noise(1)
    keys = torch.cat([luck.bits(step, 1, salt).flatten() for step in range(40) for salt in range(64)])
    assert len(keys.unique()) == len(keys)
    assert len(luck.bits(0, 200_000).unique()) == 200_000


def test_keys_do_not_depend_on_the_host_or_the_day() -> None:
    """The numbers are part of the promise: a recorded run can be repeated on another machine."""
    assert row_keys(0, np.array([1, 2]), "pgd()").tolist() == KEYS
    assert noise(1).uniform(0, (3,)).tolist() == UNIFORM
    assert text_key("abc") == TEXT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_draws_are_uniform(dtype: torch.dtype) -> None:
    u = noise(400).uniform(2, (500,), dtype=dtype)
    assert u.dtype == dtype and float(u.min()) >= 0 and float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(float(u.double().mean()) - 0.5) < 5 / math.sqrt(12 * u.numel())
    across_rows, across_lanes = u[:, 0], u[0]
    assert stats.kstest(across_rows.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(across_lanes.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(torch.stack([noise(1).uniform(t, (1,))[0] for t in range(500)]).flatten().numpy(),
                        "uniform").pvalue > 1e-3  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_draws_are_normal_and_finite(dtype: torch.dtype) -> None:
    z = noise(400).normal(1, (500,), dtype=dtype)
    assert z.dtype == dtype and bool(z.isfinite().all())
    assert stats.kstest(z.flatten().double().numpy(), "norm").pvalue > 1e-3
    moments = [float(z.double().pow(p).mean()) for p in (1, 2, 3, 4)]
    for found, expected, spread in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(found - expected) < 5 * math.sqrt(spread / z.numel())


def test_the_ends_of_the_uniform_give_finite_normals() -> None:
    class Ends(Noise):
        def uniform(self, *args: object, **kwargs: object) -> Tensor:
            return torch.tensor([[0.0, 1 - 2.0**-24]])

    ends = Ends(torch.zeros(1, dtype=torch.int64)).normal(0, (2,))
    assert bool(ends.isfinite().all()) and float(ends[0, 0]) == -float(ends[0, 1]) < -5


def test_signs_are_fair_and_integers_fill_their_range() -> None:
    s = noise(300).signs(0, (300,))
    assert set(s.unique().tolist()) == {-1.0, 1.0} and abs(float(s.mean())) < 5 / 300
    high = torch.arange(1, 8).repeat(3000)
    i = noise(len(high)).integers(0, high)
    assert bool((i >= 0).all()) and bool((i < high).all()) and i.dtype == torch.int64
    for top in range(1, 8):
        counts = torch.bincount(i[high == top], minlength=top)
        assert len(counts) == top and stats.chisquare(counts.numpy()).pvalue > 1e-3 if top > 1 else True


def test_neighbours_are_not_correlated() -> None:
    u = (noise(2000).uniform(0, (32,)) - 0.5).double()
    bound = 5 / 12 / math.sqrt(2000 * 31)
    assert abs(float((u[:, 1:] * u[:, :-1]).mean())) < bound  # lanes
    assert abs(float((u[1:] * u[:-1]).mean())) < bound  # examples with neighbouring ids
    next_step = (noise(2000).uniform(1, (32,)) - 0.5).double()
    assert abs(float((u * next_step).mean())) < bound
    next_restart = (noise(2000, restart=1).uniform(0, (32,)) - 0.5).double()
    assert abs(float((u * next_restart).mean())) < bound


def test_ids_are_those_of_the_bytes() -> None:
    x = torch.rand(6, 3, 4)
    ids = example_ids(x)
    assert ids.shape == (6,) and ids.dtype == np.int64 and len(set(ids.tolist())) == 6
    assert example_ids(x.flip(0)).tolist() == ids[::-1].tolist()
    assert example_ids(x.double()).tolist() == ids.tolist()
    assert example_ids(x.transpose(1, 2).contiguous().transpose(1, 2)).tolist() == ids.tolist()
    assert example_ids(x.reshape(6, 12)).tolist() == ids.tolist()
    zero = torch.zeros(2, 3)
    assert example_ids(-zero).tolist() == example_ids(zero).tolist(), "-0 is 0"
    y = x.clone()
    y[2, 0, 0] += 1e-6
    assert (example_ids(y) != ids).tolist() == [False, False, True, False, False, False]
    assert example_ids(x[:0]).shape == (0,) and example_ids(torch.rand(3)).shape == (3,)


def test_ids_of_texts() -> None:
    ids = example_ids(["a", "b", "a"])
    assert ids[0] == ids[2] != ids[1] and example_ids([]).shape == (0,)


def test_noise_leaves_the_global_generators_alone(same_luck: None) -> None:
    noise(3).normal(0, (5,))
    noise(3).integers(0, 4)


KEYS = [87399330562629499, 9203232116278710274]
UNIFORM = [[0.645301103591919, 0.4440042972564697, 0.5073280930519104]]
TEXT = 6455300059550759896
