"""Recipes step by step against plain loops written down from their papers, and the schedule and shapes of Square."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfooled as uf
from unfooled import attacks
from unfooled.core.engine import last_iterate
from unfooled.testing import size_of

EPS = {"linf": 0.08, "l2": 0.6}


class Smooth(nn.Module):
    """A small smooth network in double precision."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 12, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(classes, 20, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.a.T) @ self.b.T


def examples() -> tuple[Smooth, Tensor, Tensor]:
    net = Smooth()
    x = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:4] = x[:4].round()  # at the walls of the box
    return net, x, net(x).argmax(1)


def slope(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_(True)
    loss = F.cross_entropy(net(leaf), y, reduction="none")
    (g,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), g


def length(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def unit(norm: str, g: Tensor) -> Tensor:
    return g.sign() if norm == "linf" else g / length(g)


def back(norm: str, v: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the projection on ball and box, by the references of unfooled.testing."""
    from unfooled.testing import reference_project

    rows = zip(v.flatten(1).numpy(), x.flatten(1).numpy(), strict=True)
    return torch.from_numpy(np.stack([reference_project(norm, a, b, eps, (0, 1)) for a, b in rows])).view_as(x)


def plain(
    norm: str, net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: Callable[[int], float], start: Tensor
) -> Tensor:
    v = start
    for t in range(steps):
        v = back(norm, v + rate(t) * EPS[norm] * unit(norm, slope(net, v, y)[1]), x, EPS[norm])
    return v


def close(recipe: str, norm: str, expected: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
    net, x, y = examples()
    ball = uf.Ball(uf.norms.NORMS[norm], EPS[norm])
    mine = last_iterate(attacks.parse(recipe), net, x, y, ball)
    assert torch.allclose(mine, expected(net, x, y), atol=1e-9), float((mine - expected(net, x, y)).abs().max())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm(norm: str) -> None:
    close("fgsm()", norm, lambda net, x, y: back(norm, x + EPS[norm] * unit(norm, slope(net, x, y)[1]), x, EPS[norm]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bim_and_pgd_from_the_clean_input(norm: str) -> None:
    close("bim(steps=7, step_size=0.3)", norm, lambda n, x, y: plain(norm, n, x, y, 7, lambda t: 0.3, x))
    close("pgd(steps=8, start='clean')", norm, lambda n, x, y: plain(norm, n, x, y, 8, lambda t: 2.5 / 8, x))

    def cosine(t: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * t / 9))

    close("pgd(steps=9, start='clean', schedule='cosine')", norm, lambda n, x, y: plain(norm, n, x, y, 9, cosine, x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mi_fgsm(norm: str) -> None:
    """Dong et al. 2018, Algorithm 1: g <- mu g + grad / |grad|_1, x <- x + alpha sign(g)."""

    def published(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        v, g = x, torch.zeros_like(x)
        for _ in range(10):
            grad = slope(net, v, y)[1]
            g = 0.9 * g + grad / grad.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
            v = back(norm, v + EPS[norm] / 10 * unit(norm, g), x, EPS[norm])
        return v

    close("mi_fgsm(decay=0.9)", norm, published)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixel_gradient(norm: str) -> None:
    def published(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        v = x
        for _ in range(6):
            grad = slope(net, v, y)[1]
            size = grad.flatten(1).abs().amax(1).view(-1, 1, 1, 1) if norm == "linf" else length(grad)
            v = back(norm, v + 0.2 * EPS[norm] * grad / size, x, EPS[norm])
        return v

    close("pixel_gradient(steps=6, step_size=0.2)", norm, published)


def published_apgd(norm: str, net: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Croce and Hein 2020, Algorithm 1 with the constants of their code, one example at a time; last iterate, steps."""
    eps, ends, halvings = EPS[norm], [], []
    for i in range(len(x)):
        x0, label = x[i : i + 1], y[i : i + 1]
        marks, p0, p1 = [0], 0.0, 0.22
        window, least, shrink = (max(int(f * steps), 1) for f in (0.22, 0.06, 0.03))
        while marks[-1] + window <= steps:
            marks.append(marks[-1] + window)
            window = max(window - shrink, least)
        assert marks[1] == int(0.22 * steps) and p0 < p1
        old = v = x0
        loss, grad = slope(net, v, label)
        losses, best, best_x, best_grad = [float(loss)], float(loss), v, grad
        size, halved, best_at_mark = 2 * eps, True, float(loss)
        for t in range(1, steps + 1):
            z = back(norm, v + size * unit(norm, grad), x0, eps)
            share = 1.0 if t == 1 else 0.75
            moved = z if t == 1 else back(norm, v + share * (z - v) + (1 - share) * (v - old), x0, eps)
            old, v = v, moved
            loss, grad = slope(net, v, label)
            losses.append(float(loss))
            if losses[-1] > best:
                best, best_x, best_grad = losses[-1], v, grad
            if t in marks[1:]:
                since = marks[marks.index(t) - 1]
                ups = sum(losses[j] > losses[j - 1] for j in range(since + 1, t + 1))
                first, second = ups <= 0.75 * (t - since), not halved and best_at_mark >= best
                halved, best_at_mark = first or second, best
                if halved:
                    size, v, grad = size / 2, best_x, best_grad
                    if t == steps:  # the iterate, not the best point, is what ends
                        v = moved
        ends.append(v)
        halvings.append(size)
    return torch.cat(ends), torch.tensor(halvings)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [10, 30, 50])
def test_apgd(norm: str, steps: int) -> None:
    net, x, y = examples()
    _, sizes = published_apgd(norm, net, x, y, steps)
    assert bool((sizes < 2 * EPS[norm]).any()), "the step sizes never change: the test shows little"
    close(f"apgd(steps={steps}, start='clean')", norm, lambda n, x, y: published_apgd(norm, n, x, y, steps)[0])


def test_l1_steps_are_sparse_and_follow_the_gradient() -> None:
    """arXiv 2103.01208: a step moves the values of largest gradient that the box lets move, all alike."""
    net, x, y = examples()
    seen: list[Tensor] = []

    def watch(v: Tensor) -> Tensor:
        seen.append(v.detach().clone())
        return net(v)

    wrapped = Smooth()
    wrapped.forward = watch  # type: ignore[method-assign]
    last_iterate(attacks.apgd(steps=30, start="clean"), wrapped, x, y, uf.l1(0.8))
    first = (seen[1] - seen[0]).flatten(1)
    assert bool(((first != 0).sum(1) <= math.ceil(0.2 * 12)).all()) and bool((first != 0).any(1).all())
    gradient = slope(net, seen[0], y)[1].flatten(1)
    moved = first != 0
    assert bool((first[moved].sign() == gradient[moved].sign()).all())
    free = ~(((gradient > 0) & (x.flatten(1) >= 1)) | ((gradient < 0) & (x.flatten(1) <= 0)))
    for i in range(len(x)):
        rest = (gradient[i].abs() * free[i])[~moved[i]]
        assert gradient[i].abs()[moved[i]].min() >= rest.max() - 1e-12


def test_aimed_attacks_try_the_likeliest_wrong_classes_each_once() -> None:
    net, x, y = examples()
    towards: list[Tensor] = []

    original = attacks.gradient.climb

    def climb(loss: str, y: Tensor, wanted: Tensor | None, **kwargs: Any) -> Any:
        assert wanted is not None
        towards.append(wanted.clone())
        return original(loss, y, wanted, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks.gradient, "climb", climb)
        uf.run(attacks.apgd_targeted(steps=2, targets=9), net, x, y, uf.linf(1e-5))
    ranked = net(x).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    tried = torch.stack(towards[::2], 1)
    assert torch.equal(tried, ranked[:, :4]), "five classes: four wrong ones, in their order"


# ---- Square


class Watched(nn.Module):
    """Keeps what it is shown and what it answered."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.seen, self.said = net, [], []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        self.seen.append(x.clone())
        self.said.append(z.clone())
        return z


SCHEDULE = (
    (0, 1),
    (10, 2),
    (50, 4),
    (200, 8),
    (500, 16),
    (1000, 32),
    (2000, 64),
    (4000, 128),
    (6000, 256),
    (8000, 512),
)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20)])
def test_square_changes_one_square_of_the_scheduled_size(shape: tuple[int, ...]) -> None:
    """Linf: stripes first; then each query differs from the best point in one square, by corners of the ball alone."""
    c, h, w = shape
    eps, queries, weight = 0.1, 400, torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
    watched = Watched(lambda v: torch.stack([torch.full((len(v),), 50.0), v.flatten(1) @ weight * 0.01], 1))
    x = 0.3 + 0.4 * torch.rand(1, *shape)
    uf.run(attacks.square(queries=queries), watched, x, torch.zeros(1, dtype=torch.int64), uf.linf(eps))
    shown, leads = watched.seen[1:], [float(z[0, 1] - z[0, 0]) for z in watched.said[1:]]
    first = shown[0] - x
    assert torch.allclose(first.abs(), torch.full_like(first, eps), atol=1e-6)
    assert torch.equal(first.sign()[:, :, :1].expand_as(first), first.sign()), "stripes of one pixel's width"
    best, lead, sizes = shown[0], leads[0], []
    for t, (now, gained) in enumerate(zip(shown[1:], leads[1:], strict=True), 1):
        assert torch.allclose((now - x).abs(), torch.full_like(x, eps), atol=1e-6)
        changed = (now != best).any(1)[0]
        if bool(changed.any()):
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            scaled = t * 10000 // queries
            share = 0.8 / max(by for after, by in SCHEDULE if scaled > after or not after)
            side = max(1, round(math.sqrt(share * h * w)))
            assert len(rows) <= min(side, h) and len(columns) <= min(side, w), f"query {t}: a square of {side}"
            assert int(rows[-1] - rows[0]) < side and int(columns[-1] - columns[0]) < side
            sizes.append(side)
            for channel in range(c):
                window = now[0, channel, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] - x[
                    0, channel, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # fmt: skip
                assert len(window.sign().unique()) == 1, "one sign per channel"
        if gained > lead:
            best, lead = now, gained
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    assert lead > leads[0]


def test_square_l2_keeps_the_length_and_moves_mass() -> None:
    shape, eps = (3, 12, 12), 1.0
    weight = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
    watched = Watched(lambda v: torch.stack([torch.full((len(v),), 50.0), v.flatten(1) @ weight * 0.01], 1))
    x = torch.full((1, *shape), 0.5)
    uf.run(attacks.square(queries=200), watched, x, torch.zeros(1, dtype=torch.int64), uf.l2(eps))
    sizes = [size_of("l2", (v - x).flatten(1).double().numpy())[0] for v in watched.seen[1:]]
    assert np.allclose(sizes, eps, rtol=1e-4)
    leads = [float(z[0, 1]) for z in watched.said[1:]]
    assert max(leads) > leads[0]
    for before, after in itertools.pairwise(watched.seen[1:30]):
        assert not torch.equal(before, after)
