"""The doctor and what it brings: memory put back, gradients straight through, repairs that keep every answer."""

import types
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from unfooled import losses
from unfooled.core.memory import Snapshot
from unfooled.core.result import AttackRow, Finding
from unfooled.core.straight import VARIANTS, Straight, find, trace
from unfooled.core.target import pick
from unfooled.errors import InputError, TargetError
from unfooled.evaluate.checkup import Checkup
from unfooled.evaluate.verdict import settled
from unfooled.testing import Spy


def net(seed: int = 0, k: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, k)).eval()


class Wrap(nn.Module):
    def __init__(self, base: nn.Module, f: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.base, self.f = base, f

    def forward(self, v: Tensor) -> object:
        return self.f(self.base, v)


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def labels(base: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return base(x).argmax(1)


# ---- gradients straight through: the gradient found is that of the network under what hides it


class Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, v: Tensor) -> Tensor:
        return v * 1.0

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * 0


def _hooked(b: nn.Module, v: Tensor) -> Tensor:
    u = v * 1.0
    if u.requires_grad:
        u.register_hook(lambda g: -g)
    return b(u)


def _no_grad(b: nn.Module, v: Tensor) -> Tensor:
    with torch.no_grad():
        return b(v)


def _inference(b: nn.Module, v: Tensor) -> Tensor:
    with torch.inference_mode():
        return b(v).clone()


def _other(b: nn.Module, v: Tensor) -> Tensor:
    w = torch.randn(64, 5, generator=torch.Generator().manual_seed(3))
    return b(v.detach()) + (v.flatten(1) @ w - (v.flatten(1) @ w).detach())


HIDDEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "detach": lambda b, v: b(v.detach()),
    "data": lambda b, v: b(v.data),
    "clone": lambda b, v: b(v.detach().clone()),
    "no_grad": _no_grad,
    "inference_mode": _inference,
    "numpy": lambda b, v: b(torch.from_numpy(v.detach().numpy().copy())),
    "backward": lambda b, v: b(Zero.apply(v)),
    "hook": _hooked,
    "decoy": _other,
    "hard label": lambda b, v: F.one_hot(b(v).argmax(1), 5).float(),
    "sharp": lambda b, v: (b(v) * 1e4).softmax(1),
    "plateau": lambda b, v: (lambda z: torch.maximum(z, z.amax(1, keepdim=True) - 1e-6))(b(v)),
    "rounded": lambda b, v: (b(v) / 4).round() + 1e-4 * b(v).detach(),
    "nested": lambda b, v: Wrap(Wrap(b, lambda c, u: c(u.detach())), lambda c, u: c(u) * 2 + 1)(v),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_gradient_under_what_hides_it(name: str) -> None:
    base, x = net(), images(12)
    y = labels(base, x)
    target = uf.Target(Wrap(base, HIDDEN[name]).eval())

    def step(points: Tensor, grad: Tensor) -> Tensor:
        return points + 0.01 * grad.sign()

    found = find(target, x, y, (x + 0.01).clamp(0, 1), step, losses.margin)
    assert found is not None and found.share > 0.9
    leaf = x.clone().requires_grad_(True)
    scores, climbed = found.logits(target, leaf)
    assert torch.equal(scores.detach(), target.scores(x).detach()), "values never change"
    got = torch.autograd.grad(losses.margin(climbed, y).sum(), leaf)[0]
    own = x.clone().requires_grad_(True)
    true = torch.autograd.grad(losses.margin(base(own), y).sum(), own)[0]
    cosine = F.cosine_similarity(got.flatten(1), true.flatten(1), dim=1)
    assert float(cosine.min()) > 0.99


def test_tracing_leaves_torch_and_the_target_as_they_were() -> None:
    before = (torch.autograd.Function.apply, torch.no_grad.__enter__, torch.inference_mode.__enter__)
    base = net()
    handle = base.register_full_backward_hook(lambda m, gi, go: None)
    for f in (HIDDEN["hook"], lambda b, v: 1 / 0):
        try:
            trace(uf.Target(Wrap(base, f)), images(3).requires_grad_(True), find.__globals__["VARIANTS"][0])
        except ZeroDivisionError:
            pass
    after = (torch.autograd.Function.apply, torch.no_grad.__enter__, torch.inference_mode.__enter__)
    assert [getattr(f, "__func__", f) for f in before] == [getattr(f, "__func__", f) for f in after]
    assert base._backward_hooks and torch.is_grad_enabled()
    handle.remove()
    v = images(2).requires_grad_(True)
    assert torch.equal(torch.autograd.grad(Zero.apply(v).sum(), v)[0], torch.zeros_like(v))


# ---- memory


def test_a_snapshot_puts_everything_back() -> None:
    seen: list[int] = [1]
    count = 0

    class Thing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.weight = nn.Parameter(torch.ones(2))
            self.store: dict[str, list[int]] = {"a": [1]}
            self.tags, self.calls, self.box = {1}, 0, types.SimpleNamespace(n=0)
            self.array = np.zeros(2)

        def forward(self, v: Tensor) -> Tensor:
            nonlocal count
            count += 1
            self.calls += 1
            self.mean += 1
            self.weight.data.add_(1)
            self.weight.detach().mul_(2)
            self.store["a"].append(2)
            self.store["b"] = []
            self.tags.add(7)
            self.box.n += 1
            self.array += 1
            seen.append(3)
            return v

    thing = Thing()
    snapshot = Snapshot(thing)
    for _ in range(3):
        for _ in range(2):
            thing(torch.zeros(1))
        snapshot.restore()
        assert (thing.calls, thing.box.n, thing.store, thing.tags) == (0, 0, {"a": [1]}, {1})
        assert not thing.mean.any() and not thing.array.any() and torch.equal(thing.weight.data, torch.ones(2))
        assert seen == [1] and count == 0


def test_the_doctor_leaves_a_counting_target_with_its_count() -> None:
    base, x = net(), images()
    spy = Spy(base)
    up = uf.doctor(spy, x, labels(base, x), "linf(0.05)")
    assert up.findings == [] and spy.forward_rows == up.forward and spy.backward_rows == up.backward
    assert up.forward < 1500


# ---- what a module may return


@pytest.mark.parametrize(
    "out",
    [
        lambda z: z,
        lambda z: (z, torch.zeros(3)),
        lambda z: {"loss": None, "logits": z},
        lambda z: {"anything": z, "other": torch.zeros(2, 3, 4)},
        lambda z: types.SimpleNamespace(logits=z),
        lambda z: [None, z],
    ],
)
def test_scores_are_found_in_what_comes_back(out: Callable[[Tensor], object]) -> None:
    z = torch.rand(4, 5)
    assert pick(out(z), 4) is z


def test_unclear_outputs_are_a_sentence_and_output_names_the_part() -> None:
    z = torch.rand(4, 5)
    with pytest.raises(TargetError, match="output="):
        pick({"a": z, "b": z + 1}, 4)
    assert pick({"a": z, "b": z + 1}, 4, "b") is not z
    with pytest.raises(TargetError, match="without the part"):
        pick({"a": z}, 4, "c")
    with pytest.raises(InputError, match="reject"):
        uf.Target(net(), reject=1.5)


# ---- repairs keep the undefended network's robust set, image by image

KEPT: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "softmax": lambda b, v: b(v).softmax(1),
    "sigmoids": lambda b, v: (b(v) * 4).sigmoid(),
    "sharp softmax": lambda b, v: (b(v) * 1e3).softmax(1),
    "log-softmax": lambda b, v: b(v).log_softmax(1),
    "tuple": lambda b, v: (b(v), None),
    "huge": lambda b, v: b(v) * 1e5,
    "tiny": lambda b, v: b(v) * 1e-5,
    "detached": lambda b, v: b(v.detach()),
    "hard": lambda b, v: F.one_hot(b(v).argmax(1), 5).double(),
    "in place": lambda b, v: b(v.mul_(1.0).add_(0.0).mul_(1.0)),
    "one at a time": lambda b, v: b(v) if len(v) == 3 else 1 / 0,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_wrapper_that_keeps_every_answer_keeps_the_robust_set(name: str) -> None:
    base, x = net(), images(30)
    y = labels(base, x)
    honest = uf.evaluate(base, x, y, "linf(0.06)", suite="standard")
    assert 0.1 < honest.robust_accuracy < 0.9 and honest.status == "trusted"
    found = uf.evaluate(Wrap(base, KEPT[name]), x, y, "linf(0.06)", suite="standard")
    assert abs(int(found.robust.sum()) - int(honest.robust.sum())) <= 1
    with torch.no_grad():
        broken = torch.tensor([o == "broken" for o in found.outcome])
        assert (base(found.x_adv).argmax(1)[broken] != y[broken]).all()


def test_a_rejecting_target_is_broken_where_it_is_wrong_and_answers() -> None:
    base, x = net(), images(40)
    y = labels(base, x)

    with torch.no_grad():
        least = float((base(x) * 8).softmax(1).amax(1).quantile(0.2))

    def rejecting(b: nn.Module, v: Tensor) -> Tensor:
        z = b(v) * 8
        unsure = z.softmax(1).amax(1) < least
        return torch.cat([z, torch.where(unsure, 1e3, -1e3).view(-1, 1)], 1)

    found = uf.evaluate(uf.Target(Wrap(base, rejecting), reject="last"), x, y, "linf(0.2)", suite="standard")
    assert {"C8"} <= {f.id for f in found.findings} and found.rejected_clean.any()
    with torch.no_grad():
        answer = Wrap(base, rejecting)(found.x_adv).argmax(1)  # type: ignore[attr-defined]
    broken = torch.tensor([o == "broken" for o in found.outcome])
    assert broken.any() and (answer[broken] != y[broken]).all() and (answer[broken] != 5).all()
    clean = uf.evaluate(uf.Target(base, reject=0.99), x, y, "linf(0.08)", suite="quick")
    assert clean.rejected_clean.sum() >= 1


def test_a_random_target_counts_by_its_draws() -> None:
    base, x = net(), images(30)
    y = labels(base, x)
    noisy = Wrap(base, lambda b, v: b(v) + 0.3 * torch.randn(len(v), 5))
    a, b = (uf.evaluate(noisy, x, y, "linf(0.05)", suite="quick") for _ in range(2))
    assert a.draws == 20 and torch.equal(a.survival, b.survival), "the same seed, the same luck"
    assert {f.id for f in a.findings} & {"B2"} and 0 <= a.robust_accuracy <= 1
    honest = uf.evaluate(base, x, y, "linf(0.05)", suite="standard").robust_accuracy
    assert abs(a.robust_accuracy - honest) < 0.15


@pytest.mark.parametrize("size", [7, 8])
def test_a_gradient_is_found_where_only_one_batch_size_is_taken(size: int) -> None:
    def rounded(base: nn.Module, v: Tensor) -> Tensor:
        if len(v) != size:
            raise ValueError(f"{size} images, please")
        return base((v * 64).round() / 64)

    base, x = net(), images()
    up = uf.doctor(Wrap(base, rounded), x, labels(base, x), uf.linf(0.05))
    assert up.target.batch == size and up.masked
    assert up.target.straight is not None and up.target.straight.share > 0.5


def test_a_target_that_drifts_is_measured_again_or_withheld() -> None:
    base, x = net(), images(30)
    y = labels(base, x)

    class Drifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.calls = base, 0

        def forward(self, v: Tensor) -> Tensor:
            self.calls += 1
            return self.base(v) if self.calls < 80 else self.base(v).roll(1, 1)

    def elsewhere(v: Tensor) -> Tensor:  # nobody can put this one back
        GLOBAL["calls"] += 1
        return base(v) if GLOBAL["calls"] < 80 else base(v).roll(1, 1)

    honest = uf.evaluate(base, x, y, "linf(0.06)", suite="standard")
    again = uf.evaluate(Drifts(), x, y, "linf(0.06)", suite="standard")
    assert "B6" in {f.id for f in again.findings} and abs(again.robust_accuracy - honest.robust_accuracy) < 0.04
    lost = uf.evaluate(elsewhere, x, y, "linf(0.06)", suite="standard")
    assert lost.status == "withheld"


GLOBAL = {"calls": 0}


@pytest.mark.parametrize("name", ["detached", "hard"])
def test_the_curve_goes_where_the_gradient_is(name: str) -> None:
    base, x = net(), images(20)
    found = uf.evaluate(Wrap(base, KEPT[name]), x, labels(base, x), "linf(0.06)", suite="quick", curve=True)
    assert found.curve is not None and len(found.curve) == 5
    assert found.curve[2].robust_accuracy <= found.robust_accuracy + 0.11
    assert found.curve[0].robust_accuracy > found.curve[4].robust_accuracy


@pytest.mark.parametrize("where", ["target", "argument"])
def test_with_labels_alone_rays_are_sent(where: str) -> None:
    base, x = net(), images(30)
    y = labels(base, x)
    honest = uf.evaluate(base, x, y, "linf(0.06)", suite="standard").robust_accuracy
    target = uf.Target(base, access=uf.Access.LABEL) if where == "target" else uf.Target(base)
    access = None if where == "target" else uf.Access.LABEL
    found = uf.evaluate(target, x, y, "linf(0.06)", suite="quick", access=access)
    assert honest <= found.robust_accuracy <= honest + 0.14 and found.backward_total == 0
    assert found.status == "suspect", "a number from labels alone bounds no attacker who sees gradients"


def test_constant_answers_are_withheld() -> None:
    x = images(20)
    flat = Wrap(net(), lambda b, v: torch.eye(5)[2].expand(len(v), 5) + 0 * v.flatten(1).sum(1, keepdim=True))
    found = uf.evaluate(flat, x, torch.full((20,), 2), "linf(0.1)", suite="quick")
    assert found.status == "withheld" and "C9" in {f.id for f in found.findings}


# ---- missing gradients and the verdict


def test_missing_gradients_leave_no_doubt_where_attacks_without_any_find_nothing_more() -> None:
    base, x = net(), images(30)
    y = labels(base, x)
    honest = uf.evaluate(base, x, y, "linf(0.06)", suite="quick")
    found = uf.evaluate(Wrap(base, lambda b, v: b((v * 64).round() / 64)), x, y, "linf(0.06)", suite="quick")
    assert abs(int(found.robust.sum()) - int(honest.robust.sum())) <= 2 and found.status == "trusted"
    (missing,) = [f for f in found.findings if f.id == "D1"]
    assert missing.consequence == "repaired" and "These broke 0 of the " in missing.sentence


def test_where_attacks_without_gradients_find_more_the_doubt_stays_and_a_way_on_is_named() -> None:
    base, x = net(), 0.2 + 0.6 * images(40)
    x[..., 1] = x[..., 0]

    def trapped(b: nn.Module, v: Tensor) -> Tensor:
        z = b((v * 64).round() / 64)
        opened = v[:, 0, :, 0].mean(1) - v[:, 0, :, 1].mean(1) > 0.06  # which no gradient leads to
        return torch.where(opened[:, None], z.roll(1, 1), z)

    found = uf.evaluate(Wrap(base, trapped), x, labels(base, x), "linf(0.04)", suite="quick")
    assert sum(r.broken for r in found.attacks if r.name.startswith(("square", "ray"))) > 1
    (missing,) = [f for f in found.findings if f.id == "D1"]
    assert found.status == "suspect" and missing.consequence == "escalated"
    assert "smooth stand-in" in missing.sentence


@pytest.mark.parametrize(
    ("share", "last", "alone", "other", "stands"),
    [
        (0.95, 0, 0, "D2", True),
        (0.95, 1, 2, "D2", True),
        (0.95, 0, 3, "D2", False),
        (0.95, 3, 0, "D2", False),
        (0.6, 0, 0, "D2", False),
        (None, 0, 0, "D2", False),
        (0.95, 0, 0, "D8", False),
    ],
)
def test_what_settles_missing_gradients(
    share: float | None, last: int, alone: int, other: str, *, stands: bool
) -> None:
    up = Checkup(uf.Target(net()))
    up.target.straight = None if share is None else Straight(VARIANTS[0], None, share)
    rows = [
        AttackRow("pgd(steps=20, sense='straight')", attempted=150, broken=60),
        AttackRow("apgd(steps=75, sense='straight')", attempted=90, broken=last),
        AttackRow("ray(queries=500)", attempted=90 - last, broken=alone),
        AttackRow("square(queries=1000)", attempted=90 - last - alone),
    ]
    findings = [Finding(i, i, "No gradient.", "escalated") for i in ("D1", other)]
    found = settled(up, findings, rows, 200)
    assert [f.consequence for f in found] == ["repaired" if stands else "escalated"] * 2
    assert ("smooth stand-in" in found[0].sentence) is (not stands and other == "D2")
    skipped = [*rows[:2], *(replace(r, skipped="of no use") for r in rows[2:])]
    assert {f.consequence for f in settled(up, findings, skipped, 200)} == {"escalated"}
