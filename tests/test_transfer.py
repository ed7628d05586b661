"""Transfer: the recipes against plain loops, what the target is asked, matrices and ensembles against closed forms."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfooled as uf
from unfooled import attacks
from unfooled.attacks.transfer import Transfer
from unfooled.core.engine import last_iterate
from unfooled.errors import TargetError
from unfooled.testing import Linear, Spy, linear_distance, linear_points

EPS, STEPS = 0.08, 6
SHAPE = (2, 6, 5)


class Smooth(nn.Module):
    """A small smooth network in double precision."""

    def __init__(self, seed: int = 0, classes: int = 4) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(20, math.prod(SHAPE), generator=g, dtype=torch.float64) / 4)
        self.b = nn.Parameter(torch.randn(classes, 20, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.a.T) @ self.b.T


def examples(n: int = 12) -> tuple[Smooth, Tensor, Tensor]:
    net = Smooth()
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return net, x, net(x).argmax(1)


def slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)[0]


def blurred(g: Tensor, size: int) -> Tensor:
    """A Gaussian of three deviations to the edge, as a convolution per channel."""
    line = torch.exp(-torch.linspace(-3, 3, size, dtype=g.dtype).square() / 2)
    kernel = torch.outer(line, line) / torch.outer(line, line).sum()
    return F.conv2d(g, kernel.expand(g.shape[1], 1, size, size), padding=size // 2, groups=g.shape[1])


def published(net: nn.Module, x: Tensor, y: Tensor, *, nesterov: bool = False, scales: int = 1, kernel: int = 1) -> Any:
    """MI-FGSM with decay 0.9 and steps of EPS / STEPS, and what the papers change of it, as a plain loop."""
    v, memory, step = x, torch.zeros_like(x), EPS / STEPS
    for _ in range(STEPS):
        at = (v + 0.9 * step * memory).clamp(0, 1) if nesterov else v
        g = sum(slope(net, at / 2**i, y) / 2**i for i in range(scales)) / scales
        g = blurred(g, kernel) if kernel > 1 else g
        memory = 0.9 * memory + g / g.abs().mean((1, 2, 3), keepdim=True)
        v = torch.maximum(torch.minimum(v + step * memory.sign(), x + EPS), x - EPS).clamp(0, 1)
    return v


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        ("mi_fgsm", {}),
        ("ni_fgsm", {"nesterov": True}),
        ("si_fgsm", {"scales": 5}),
        ("ti_fgsm", {"kernel": 5}),
        ("composite_fgsm(diversity=0.0, scales=3)", {"nesterov": True, "scales": 3, "kernel": 5}),
    ],
)
def test_recipes_are_what_their_papers_write(recipe: str, change: dict[str, Any]) -> None:
    net, x, y = examples()
    call = f"{recipe.rstrip(')')}{', ' if '(' in recipe else '('}steps={STEPS}, decay=0.9)"
    mine = last_iterate(attacks.parse(call), net, x, y, uf.linf(EPS))
    assert torch.allclose(mine, published(net, x, y, **change), atol=1e-9)
    if change:
        assert not torch.allclose(mine, published(net, x, y), atol=1e-3), "the change changes nothing"


NOTHING = {
    "no neighbours": attacks.composite_fgsm(nesterov=False, diversity=0.0, scales=1, kernel=1, neighbours=0),
    "a kernel of one pixel": attacks.ti_fgsm(kernel=1),
    "no diversity": attacks.di_fgsm(diversity=0.0),
    "one scale": attacks.si_fgsm(scales=1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_with_nothing_changed_it_is_mi_fgsm(name: str) -> None:
    net, x, y = examples()
    plain = last_iterate(attacks.mi_fgsm(), net, x, y, uf.linf(EPS))
    assert torch.equal(last_iterate(NOTHING[name], net, x, y, uf.linf(EPS)), plain)


def test_diverse_copies_of_full_size_and_neighbours_at_hand_change_next_to_nothing() -> None:
    net, x, y = examples()
    plain = last_iterate(attacks.mi_fgsm(), net, x, y, uf.linf(EPS))
    for near in (attacks.di_fgsm(diversity=1.0, shrink=1.0), attacks.vmi_fgsm(neighbours=3, reach=1e-9)):
        assert torch.allclose(last_iterate(near, net, x, y, uf.linf(EPS)), plain, atol=1e-9)
    for far in (attacks.di_fgsm(diversity=1.0, shrink=0.6), attacks.vmi_fgsm(neighbours=3)):
        assert not torch.allclose(last_iterate(far, net, x, y, uf.linf(EPS)), plain, atol=1e-3)


def test_the_variance_is_that_of_the_step_before() -> None:
    """VMI after two steps, the neighbours taken from the attack's own noise (arXiv 2103.15571, algorithm 1)."""
    net, x, y = examples(1)
    seen: list[Tensor] = []

    class Watched(Smooth):
        def forward(self, v: Tensor) -> Tensor:
            seen.append(v.detach().clone())
            return super().forward(v)

    end = last_iterate(attacks.vmi_fgsm(steps=2, neighbours=3, decay=0.9), Watched(), x, y, uf.linf(EPS))
    assert len(seen) == 8  # the iterate and three neighbours, twice
    first = slope(net, x, y)
    memory = first / first.abs().mean()
    middle = (x + EPS / 2 * memory.sign()).clamp(0, 1)
    assert torch.allclose(seen[4], middle)
    variance = sum(slope(net, v, y) for v in seen[1:4]) / 3 - first
    g = slope(net, middle, y) + variance
    memory = 0.9 * memory + g / g.abs().mean()
    assert torch.allclose(
        end, torch.maximum(torch.minimum(middle + EPS / 2 * memory.sign(), x + EPS), x - EPS).clamp(0, 1)
    )
    away = torch.cat(seen[1:4]) - x
    assert EPS < away.abs().max() <= 1.5 * EPS and not torch.equal(seen[1], seen[2])


def test_smaller_copies_hold_the_whole_image_at_a_random_place() -> None:
    attack = attacks.di_fgsm(diversity=1.0, shrink=0.5)
    seen: list[Tensor] = []

    def target(v: Tensor) -> Tensor:
        seen.append(v.detach())
        return torch.stack([v.flatten(1).sum(1), v.flatten(1).sum(1) * 2], 1)

    x = torch.full((8, 1, 16, 16), 0.9)
    uf.run(attack, target, x, torch.ones(8, dtype=torch.int64), uf.linf(0.05), batch_size=8, ids=range(8))
    copies = seen[1]  # what the first gradient was asked at
    mass = copies.flatten(1).sum(1) / x.flatten(1).sum(1)
    assert bool((mass > 0.2).all()) and bool((mass < 1).all()) and mass.std() > 0.02
    down = (copies[:, 0].sum(2) * torch.arange(16)).sum(1) / copies.flatten(1).sum(1)
    right = (copies[:, 0].sum(1) * torch.arange(16)).sum(1) / copies.flatten(1).sum(1)
    assert down.std() > 0.5 and right.std() > 0.5, "the middle stays where it is"


def test_vectors_are_refused_by_what_moves_and_blurs_images() -> None:
    net, x, y = Linear.random((9,)), torch.rand(3, 9), torch.zeros(3, dtype=torch.int64)
    for recipe in ("di_fgsm", "ti_fgsm", "composite_fgsm"):
        with pytest.raises(uf.InputError, match="these inputs are vectors"):
            uf.run(f"{recipe}()", net, x, y, uf.linf(0.1))
    assert len(uf.run(attacks.composite_fgsm(diversity=0.0, kernel=1), net, x, y, uf.linf(0.1)).status) == 3


@pytest.mark.parametrize(
    "call",
    ["di_fgsm(diversity=1.5)", "ti_fgsm(kernel=4)", "si_fgsm(scales=0)", "vmi_fgsm(neighbours=-1)", "mi_fgsm(steps=0)",
     "di_fgsm(shrink=0.0)", "mi_fgsm(combine='median')", "vmi_fgsm(reach=0)"],
)  # fmt: skip
def test_settings_that_make_no_attack_are_refused(call: str) -> None:
    with pytest.raises(uf.InputError):
        attacks.parse(call)


# ---- through surrogates


@pytest.mark.parametrize("recipe", ["mi_fgsm", "di_fgsm", "ti_fgsm", "si_fgsm", "ni_fgsm", "vmi_fgsm(neighbours=2)"])
def test_the_target_answers_labels_and_the_surrogate_lends_gradients(recipe: str) -> None:
    net, x, _ = examples()
    spy, lender = Spy(Smooth(1)), Spy(net)
    label = spy(x).argmax(1)
    spy.forward_rows = 0
    made = attacks.parse(recipe)
    out = uf.run(made, spy, x, label, uf.linf(0.3), surrogates=[lender], access=uf.Access.LABEL)
    assert spy.backward_rows == 0 and lender.backward_rows > 0
    assert out.forward.sum() + out.padding[0] + out.overrun[0] == spy.forward_rows
    assert out.lent == lender.forward_rows
    assert out.success.any() and out.attacks[0].name == repr(made)
    assert (out.forward <= 1 + made.steps + 2).all(), "one label a step"
    with pytest.raises(uf.AccessError, match="needs gradient"):
        uf.run(made, spy, x, label, uf.linf(0.3), access=uf.Access.LABEL)
    few = uf.run(made, spy, x, label, uf.linf(0.001), surrogates=[lender], queries=5)
    assert (few.forward <= 5).all() and (few.forward >= 4).all(), "the budget counts what the target is asked alone"


def test_a_surrogate_that_is_the_target_is_the_white_box() -> None:
    net, x, y = examples()
    for recipe in ("mi_fgsm", "vmi_fgsm", "composite_fgsm"):
        white = uf.run(f"{recipe}()", net, x, y, uf.linf(0.3))
        lent = uf.run(f"{recipe}()", net, x, y, uf.linf(0.3), surrogates=[Smooth()])
        assert white.success.any() and torch.equal(white.success, lent.success)
        if recipe == "mi_fgsm":  # no luck in it
            assert torch.equal(white.x_adv, lent.x_adv)


def test_attacks_that_use_no_surrogates_run_as_ever() -> None:
    net, x, y = examples()
    assert torch.equal(
        uf.run("pgd()", net, x, y, uf.linf(0.2)).x_adv,
        uf.run("pgd()", net, x, y, uf.linf(0.2), surrogates=[Smooth(1)]).x_adv,
    )


def test_several_surrogates_climb_the_mean_of_their_logits() -> None:
    _, x, _ = examples()
    members, target = [Smooth(1), Smooth(2), Smooth(3)], Smooth(4)
    y = target(x).argmax(1)

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = nn.ModuleList(members)

        def forward(self, v: Tensor) -> Tensor:
            return torch.stack([m(v) for m in self.of]).mean(0)

    one = uf.run("mi_fgsm()", target, x, y, uf.linf(0.1), surrogates=[Mean()])
    many = uf.run("mi_fgsm()", target, x, y, uf.linf(0.1), surrogates=members)
    assert torch.equal(one.best, many.best)
    again = uf.run("mi_fgsm()", target, x, y, uf.linf(0.1), surrogates=[uf.ensemble(members)])
    assert torch.equal(again.best, many.best) and again.lent * 3 == many.lent


def test_mean_gradients_let_no_member_drown_the_others() -> None:
    _, x, _ = examples()
    target = Smooth(4)
    y = target(x).argmax(1)

    def best(rule: str, loud: float) -> Tensor:
        other = Smooth(2)
        with torch.no_grad():
            other.b *= loud
        return uf.run(
            attacks.mi_fgsm(loss="margin", combine=rule), target, x, y, uf.linf(0.1),
            surrogates=[Smooth(1), other],
        ).best  # fmt: skip

    assert torch.allclose(best("mean_gradients", 1.0), best("mean_gradients", 1024.0), atol=1e-12)
    assert not torch.allclose(best("mean_logits", 1.0), best("mean_logits", 1024.0), atol=1e-3)
    grads = []  # one step, by hand
    for seed in (1, 2):
        leaf = x.clone().requires_grad_(True)
        z = Smooth(seed)(leaf)
        margin = z.scatter(1, y.view(-1, 1), -torch.inf).amax(1) - z.gather(1, y.view(-1, 1))[:, 0]
        (g,) = torch.autograd.grad(margin.sum(), leaf)
        grads.append(g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    one = attacks.mi_fgsm(steps=1, loss="margin", combine="mean_gradients")
    lenders = [uf.Target(Smooth(1)), uf.Target(Smooth(2))]
    made = last_iterate(one, target, x, y, uf.linf(0.1), surrogates=lenders)
    assert torch.allclose(made, (x + 0.1 * (grads[0] + grads[1]).sign()).clamp(0, 1), atol=1e-12)


class Fragile(nn.Module):
    """Batch norm and dropout in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(60), nn.Dropout(0.5), nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "asked in training mode"
        return self.head(self.drop(self.norm(x.flatten(1))))


def test_surrogates_are_left_as_they_were() -> None:
    lender, target = Fragile(), Linear.random(SHAPE, 4)
    x = torch.rand(6, *SHAPE)
    before = {k: v.clone() for k, v in lender.state_dict().items()}
    uf.run("mi_fgsm()", target, x, target(x).argmax(1), uf.linf(0.1), surrogates=[lender])
    uf.transfer_matrix(
        [lender, target, uf.ensemble([lender, target])], "mi_fgsm()", x, target(x).argmax(1), uf.linf(0.1)
    )
    assert all(m.training for m in lender.modules())
    assert all(torch.equal(v, before[k]) for k, v in lender.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in lender.parameters())


def test_a_surrogate_of_other_bounds_is_refused() -> None:
    net, x, y = examples()
    with pytest.raises(uf.InputError, match=r"has bounds \(0.0, 255.0\)"):
        uf.run("mi_fgsm()", net, x, y, uf.linf(0.1), surrogates=[uf.Target(Smooth(), bounds=(0, 255))])


# ---- the matrix


def test_identical_linear_targets_share_every_example_and_orthogonal_ones_none() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = torch.zeros(2, 24), torch.zeros(2, 24)
    left[1, :12], right[1, 12:] = torch.randn(12, generator=g), torch.randn(12, generator=g)
    a, b = (Linear(w, -w.sum(1) / 2) for w in (left, right))
    twin = Linear(left * 3, -left.sum(1) * 1.5)
    x = torch.rand(60, 24, generator=g)
    y = a(x).argmax(1)
    matrix = uf.transfer_matrix({"a": a, "twin": twin, "b": b}, "pgd(start='clean')", x, y, uf.linf(0.2))
    own = matrix.cell("a", "a")
    assert own.n > 20 and own.rate == 1 and own.same_rate == 1 and own.interval[1] == 1 and own.interval[0] > 0.8
    assert matrix.cell("a", "twin") == own
    across = matrix.cell("a", "b")  # right on both as they are, and b does not see what moved
    assert 5 < across.n < own.n and across.fooled == 0 and across.rate == 0
    assert math.isnan(across.same_rate) and across.same_interval == (0.0, 1.0)
    both = int(((b(x).argmax(1) == y) & matrix.runs[0].success).sum())
    assert across.n == both


def test_a_matrix_counts_what_a_loop_counts() -> None:
    _, x, _ = examples(40)
    nets = {"one": Smooth(1), "two": Smooth(2), "three": Smooth(3)}
    y = torch.stack([n(x) for n in nets.values()]).mean(0).argmax(1)
    for points in ("success", "all"):
        matrix = uf.transfer_matrix(nets, attacks.mi_fgsm(), x, y, uf.linf(0.25), points=points)
        for s, (source, net) in enumerate(nets.items()):
            run = uf.run("mi_fgsm()", net, x, y, uf.linf(0.25))
            shown = run.x_adv if points == "success" else run.best
            for target, other in nets.items():
                n = fooled = same = 0
                for i in range(len(x)):
                    one = slice(i, i + 1)
                    fit = net(x[one]).argmax() == y[i] and other(x[one]).argmax() == y[i]
                    if not fit or (points == "success" and not run.success[i]):
                        continue
                    n += 1
                    label = other(shown[one]).argmax()
                    fooled += int(label != y[i])
                    same += int(label != y[i] and label == net(shown[one]).argmax())
                cell = matrix.cell(source, target)
                assert (cell.n, cell.fooled, cell.same) == (n, fooled, same) and n > 5
                assert points == "all" or source != target or cell.rate == cell.same_rate == 1
            assert torch.equal(matrix.runs[s].x_adv, run.x_adv)
        some = matrix.cell(["one", "two"], "three")
        assert some.fooled >= max(matrix.cell(s, "three").fooled for s in ("one", "two"))
        told = json.loads(json.dumps(matrix.to_dict()))
        assert len(told["cells"]) == 9 and told["points"] == points and str(matrix).count("\n") == 4


def test_names_and_settings_of_a_matrix_are_checked() -> None:
    net, x, y = examples()
    matrix = uf.transfer_matrix([net, Smooth(1)], "mi_fgsm(steps=2)", x, y, uf.linf(0.1))
    assert matrix.targets == ("Smooth", "Smooth #2")
    with pytest.raises(uf.InputError, match="Did you mean 'Smooth'"):
        matrix.cell("Smoth", "Smooth")
    with pytest.raises(uf.InputError, match="points"):
        uf.transfer_matrix([net], "fgsm()", x, y, uf.linf(0.1), points="some")  # type: ignore[arg-type]
    with pytest.raises(uf.InputError, match="at least one target"):
        uf.transfer_matrix([], "fgsm()", x, y, uf.linf(0.1))


def test_last_iterates_are_the_ends_of_all_steps() -> None:
    """They carry over better than first successes, which lie just behind their source's boundary."""
    _, x, _ = examples(40)
    nets = {"one": Smooth(1), "two": Smooth(2)}
    y = torch.stack([n(x) for n in nets.values()]).mean(0).argmax(1)
    last, first = (
        uf.transfer_matrix(nets, "mi_fgsm(steps=6, decay=0.9)", x, y, uf.linf(EPS), points=p) for p in ("last", "all")
    )
    for source, net in nets.items():
        end = published(net, x, y)
        for target, other in nets.items():
            right = (net(x).argmax(1) == y) & (other(x).argmax(1) == y)
            cell = last.cell(source, target)
            assert cell.n == int(right.sum()) and cell.fooled == int((right & (other(end).argmax(1) != y)).sum())
            assert cell.fooled >= first.cell(source, target).fooled
    to = torch.full_like(y, 2)
    led = uf.transfer_matrix(
        nets, "mi_fgsm()", x, y, uf.linf(0.5), points="last", goal=uf.Targeted(2), sources={"one": nets["one"]}
    )
    assert led.cell("one", "one").n and bool((led.same[0, 0] == (led.asked[0, 0] & (y != to))).float().mean() > 0.7)


def test_surrogates_are_looked_at_outside_the_box_and_the_target_never() -> None:
    _, x, y = examples()
    x = x.round()
    for recipe in ("vmi_fgsm(neighbours=3)", "ni_fgsm", "composite_fgsm(neighbours=1)"):
        seen: dict[str, list[Tensor]] = {"target": [], "lender": []}

        class Watched(Smooth):
            def __init__(self, seed: int, log: list[Tensor]) -> None:
                super().__init__(seed)
                self.log = log

            def forward(self, v: Tensor) -> Tensor:
                self.log.append(v.detach())
                return super().forward(v)

        lender, target = Watched(0, seen["lender"]), Watched(1, seen["target"])
        uf.run(recipe, target, x, target(x).argmax(1), uf.linf(0.2), surrogates=[lender])
        shown = {k: torch.cat(v) for k, v in seen.items()}
        assert shown["lender"].min() < -0.01 and shown["target"].min() >= 0 and shown["target"].max() <= 1
        uf.run(recipe, target, x, y, uf.linf(0.2))  # white-box
        shown = torch.cat(seen["target"])
        assert shown.min() >= 0 and shown.max() <= 1
        frozen = uf.linf(0.2, mask=torch.arange(60).view(SHAPE) % 2 == 0)
        seen["lender"].clear()
        if "vmi" in recipe:
            uf.run(recipe, target, x, target(x).argmax(1), frozen, surrogates=[lender])
            assert set(torch.cat(seen["lender"]).flatten(1)[:, 1::2].unique().tolist()) == {0.0, 1.0}


# ---- ensembles


def test_the_mean_of_linear_targets_has_the_distance_of_the_mean() -> None:
    parts = [Linear.random((24,), 3, seed=s) for s in range(3)]
    mean = Linear(
        torch.stack([p.weight for p in parts]).mean(0).detach(), torch.stack([p.bias for p in parts]).mean(0).detach()
    )
    x, y = linear_points(mean, (24,), 16, "linf", 0.06)
    assert linear_distance(mean, x, y, "linf").min() > 0.0599
    whole = uf.ensemble(parts)
    assert uf.run("apgd_targeted(loss='margin')", whole, x, y, uf.linf(1.05 * 0.06)).success.all()
    assert not uf.run("apgd_targeted()", whole, x, y, uf.linf(0.99 * 0.06)).success.any()
    x, y = x[:4], y[:4]
    matrix = uf.transfer_matrix({"a": parts[0], "b": parts[1], "all": whole}, "pgd()", x, y, uf.linf(0.1), points="all")
    assert matrix.cell("all", "all").rate == 1


def fixed(*rows: list[float]) -> uf.Target:
    return uf.Target(lambda v: torch.tensor(rows)[: len(v)])


def test_the_three_ways_to_combine() -> None:
    x = torch.zeros(2, 1)
    members = [fixed([9.0, 0, 0], [0, 1, 0]), fixed([0, 1.0, 0], [0, 0, 1]), fixed([0, 1.0, 0], [0, 0, 1.0])]
    assert uf.ensemble(members).scores(x).argmax(1).tolist() == [0, 2]
    vote = uf.ensemble(members, "vote").scores(x)
    assert vote.argmax(1).tolist() == [1, 2] and vote[0, 1] - vote[0, 0] < 1
    p = uf.ensemble(members, "mean_probabilities").scores(x)
    expected = torch.stack([m.scores(x).softmax(1) for m in members]).mean(0)
    assert torch.allclose(p.exp(), expected) and p.argmax(1).tolist() == [0, 2]
    tie = [fixed([5.0, 0, 0]), fixed([0, 1.0, 0])]  # a tie goes to the surer member
    assert uf.ensemble(tie, "vote").scores(x[:1]).argmax(1).tolist() == [0]


def test_an_ensemble_is_an_ordinary_target_with_its_members_weights() -> None:
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    members = {"a": uf.Target(a, mean=[0.5] * 1, std=2.0), "b": uf.Target(b)}
    whole = uf.ensemble(members, name="pair")
    assert whole.name == "pair" and whole.access == uf.Access.GRADIENT
    x = torch.rand(5, 4)
    assert torch.allclose(whole.scores(x), (a((x - 0.5) / 2) + b(x)) / 2)
    prints = {uf.ensemble(members, rule).fingerprint() for rule in ("mean_logits", "mean_probabilities", "vote")}
    prints.add(uf.ensemble([uf.Target(a), uf.Target(b)]).fingerprint())
    with torch.no_grad():
        b.weight += 1
    prints.add(uf.ensemble(members).fingerprint())
    assert len(prints) == 5
    limited = uf.ensemble([uf.Target(a), uf.Target(b, access=uf.Access.LABEL)])
    assert limited.access == uf.Access.LABEL


def test_ensembles_that_make_no_sense_are_refused() -> None:
    with pytest.raises(uf.InputError, match="at least one member"):
        uf.ensemble([])
    with pytest.raises(uf.InputError, match="same bounds"):
        uf.ensemble([uf.Target(nn.Linear(4, 3)), uf.Target(nn.Linear(4, 3), bounds=(-1, 1))])
    with pytest.raises(uf.InputError, match="no rule 'median'"):
        uf.ensemble([nn.Linear(4, 3)], "median")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="same classes"):
        uf.ensemble([nn.Linear(4, 3), nn.Linear(4, 2)]).scores(torch.rand(2, 4))


def test_one_member_at_a_time_and_jointly() -> None:
    """Each member as the surrogate against the vote of all, and the vote itself white-box through its probabilities."""
    _, x, _ = examples(30)
    members = {f"m{i}": Smooth(i) for i in range(3)}
    whole = uf.ensemble(members, "vote")
    y = whole.scores(x).argmax(1)
    joint = uf.run("mi_fgsm()", whole, x, y, uf.linf(0.2))
    alone = {n: uf.run("mi_fgsm()", whole, x, y, uf.linf(0.2), surrogates=[m]) for n, m in members.items()}
    together = uf.run("mi_fgsm()", whole, x, y, uf.linf(0.2), surrogates=list(members.values()))
    rates = {n: float(r.success.float().mean()) for n, r in alone.items()}
    assert max(rates.values()) < float(joint.success.float().mean()), rates
    assert float(together.success.float().mean()) > max(rates.values())


def test_transfer_between_networks_that_others_published(outside_data: Any) -> None:
    """On MNIST the composite recipe carries over where plain momentum mostly does not."""
    from unfooled.targets import ZOO

    published_nets = pytest.importorskip("benchmarks.published")
    x, y = published_nets.images("mnist", slice(0, 60))
    target, lender = ZOO["mnist-cnn"].build(), published_nets.mnist_256x2()
    rates = [
        float(uf.run(f"{r}()", target, x, y, uf.linf(0.2), surrogates=[lender]).success.float().mean())
        for r in ("mi_fgsm", "composite_fgsm")
    ]
    assert rates[1] > rates[0] + 0.05 and rates[1] > 0.2, rates


def test_the_class_behind_the_recipes_says_what_it_is() -> None:
    assert isinstance(attacks.vni_fgsm(), Transfer) and repr(attacks.vni_fgsm(steps=3)) == "vni_fgsm(steps=3)"


def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "transfer.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(compile(block, "transfer.md", "exec"), names)
    assert len(blocks) == 10 and names["run"].success.any() and names["cell"].n > 20
    for recipe in re.findall(r"`(\w+_fgsm)`", page):
        assert recipe in attacks.RECIPES
