"""DeepFool, SuperDeepFool, FAB, L-BFGS and Carlini-Wagner beyond the contract: costs, goals, masks, budgets."""

import pytest
import torch
from torch import nn

import unfooled as uf
from unfooled.testing import Linear, Spy, linear_distance, linear_points

PLANES = ("deepfool()", "superdeepfool()", "fab()", "lbfgs()", "cw()")


def curved() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 5))
    x = torch.rand(30, 20)
    with torch.no_grad():
        net[0].weight *= 6
        return net, x, net(x).argmax(1)


def test_deepfool_needs_one_step_on_a_linear_target_of_two_classes() -> None:
    target = Linear.random((24,), 2, seed=3)
    x = torch.rand(20, 24) * 0.2 + 0.4  # far from the walls of the box
    y = target(x).argmax(1)
    spy = Spy(target)
    out = uf.run("deepfool()", spy, x, y, uf.l2())
    # the first look, the planes at x, those at the point beyond, the re-check
    assert (out.forward == 4).all() and (out.backward == 2).all() and spy.backward_rows == 40
    exact = linear_distance(target, x, y, "l2")
    assert torch.allclose(out.distance, torch.from_numpy(exact) * 1.005, rtol=1e-4)


@pytest.mark.parametrize("attack", PLANES)
def test_a_wanted_class_is_reached_by_the_smallest_change(attack: str) -> None:
    target = Linear.random((24,), 4, seed=5)
    x, y = linear_points(target, (24,), 16, "l2", 0.1, seed=2)
    to = (y + 2) % 4
    out = uf.run(attack, target, x, y, uf.l2(), goal=uf.Targeted(to=to))
    assert out.success.all() and torch.equal(out.label, to)
    if attack != "deepfool()":  # it stops behind the plane, not at the nearest point where two of them meet
        again = uf.run("ddn(steps=1000)", target, x, y, uf.l2(), goal=uf.Targeted(to=to))
        assert (out.distance <= 1.15 * again.distance).all()


@pytest.mark.parametrize("attack", PLANES)
def test_frozen_values_are_left_alone(attack: str) -> None:
    net, x, y = curved()
    mask = torch.rand(20, generator=torch.Generator().manual_seed(1)) < 0.7
    out = uf.run(attack, net, x, y, uf.l2(mask=mask))
    assert out.success.float().mean() > 0.9
    assert isinstance(out.x_adv, torch.Tensor) and torch.equal(out.x_adv[:, ~mask], x[:, ~mask])
    free = uf.run(attack, net, x, y, uf.l2())
    both = out.success & free.success
    assert out.distance[both].median() > free.distance[both].median()


def test_projecting_back_comes_nearer_than_deepfool_alone() -> None:
    net, x, y = curved()
    median = {a: uf.run(a, net, x, y, uf.l2()).distance.median() for a in PLANES}
    assert median["superdeepfool()"] <= median["deepfool()"] and median["fab()"] <= 1.01 * median["deepfool()"]


def test_one_run_without_eps_says_what_runs_with_eps_find() -> None:
    net, x, y = curved()
    whole = uf.run("fab(steps=30)", net, x, y, uf.l2())
    for eps in (0.05, 0.1, 0.2):
        part = uf.run("fab(steps=30)", net, x, y, uf.l2(eps))
        assert 1 - part.success.double().mean() == pytest.approx(float(whole.curve([eps])[0]), abs=1e-9)


@pytest.mark.parametrize("attack", ["fab(steps=200)", "cw()", "lbfgs()", "deepfool()"])
def test_a_query_budget_holds(attack: str) -> None:
    net, x, y = curved()
    out = uf.run(attack, net, x, y, uf.l2(), queries=12)
    assert (out.forward <= 12).all() and out.success.any()


def test_suite_autoattack_has_all_four_attacks() -> None:
    names = [repr(a).partition("(")[0] for a in uf.attacks.SUITES["autoattack"].attacks]
    assert names == ["apgd", "apgd_targeted", "fab_targeted", "square"]


def test_overshoots_and_classes_are_checked() -> None:
    for call in ("deepfool(overshoot=0)", "deepfool(classes=0)", "fab_targeted(targets=0)", "cw(step_size=-1)"):
        with pytest.raises(uf.InputError):
            uf.attacks.parse(call)
