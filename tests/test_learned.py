"""Universal perturbations against the closed form of linear targets, planted changes, and substitutes within budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled import attacks
from unfooled.attacks.learned import Planted, imitate, planted, substitute, universal, universal_deepfool
from unfooled.testing import Linear, Spy, size_of

D = 24


def one_class(n: int = 200) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear target of two classes, inputs of class 0 well inside the box, labels, and w1 - w0."""
    net = Linear.random((D,), 2, seed=1)
    g = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(4 * n, D, generator=g)
    x = x[net(x).argmax(1) == 0][:n]
    assert len(x) > 50
    return net, x, torch.zeros(len(x), dtype=torch.int64), (net.weight[1] - net.weight[0]).detach()


LEARN = {
    "universal": lambda net, x, ball, **k: universal(net, x, ball, epochs=3, batch_size=50, **k),
    "universal_deepfool": lambda net, x, ball, **k: universal_deepfool(net, x, ball, rate=1.0, epochs=4, **k),
}


@pytest.mark.parametrize("learn", LEARN.values(), ids=list(LEARN))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_target_it_is_the_steepest_change_and_fools_what_that_fools(learn: Any, norm: str) -> None:
    net, x, y, w = one_class()
    eps = 0.05 if norm == "linf" else 0.15
    best = eps * (w.sign() if norm == "linf" else w / w.norm())
    ball = uf.Ball(uf.norms.NORMS[norm], eps)
    made = learn(net, x, ball, y=y)
    assert float((made.delta * w).sum()) >= 0.995 * float((best * w).sum())
    assert size_of(norm, made.delta.double()[None].numpy())[0] <= eps * (1 + 1e-6)
    share = float((net(x + best).argmax(1) == 1).float().mean())
    assert 0.1 < share < 0.9, "the test is about nothing"
    out = uf.run(made, net, x, y, ball)
    assert float(out.success.float().mean()) == pytest.approx(share, abs=0.02)
    none = uf.run(made, net, x, y, uf.Ball(uf.norms.NORMS[norm], eps / 100))
    assert float(none.success.float().mean()) < share / 2, "planted changes are brought back into a smaller ball"
    assert none.vanished == 0, "and shown there"


def test_one_step_of_one_batch_is_the_sign_of_the_summed_gradient() -> None:
    net = nn.Sequential(nn.Linear(D, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    x = torch.rand(30, D, dtype=torch.float64)
    y = net(x).argmax(1)
    leaf = x.clone().requires_grad_(True)
    z = net(leaf)
    others = z.scatter(1, y.view(-1, 1), -torch.inf).logsumexp(1)
    (g,) = torch.autograd.grad((others - z.gather(1, y.view(-1, 1))[:, 0]).sum(), leaf)
    made = universal(net, x, uf.linf(0.1), epochs=1, batch_size=30, inner=1, step_size=0.5)
    assert torch.allclose(made.delta, (0.05 * g.sum(0).sign()).float())
    made, parts = (universal(net, x, uf.linf(0.5), epochs=3, batch_size=30, inner=i) for i in (1, 5))
    assert parts.sha != made.sha, "walking through the batch in parts changes the gradients"


def test_rows_beyond_the_clip_pull_no_more() -> None:
    net, x, y, w = one_class()
    fooled = universal(net, x, uf.linf(0.05), y=torch.ones_like(y), to=0, loss="margin", clip=1e-6)
    assert float(fooled.delta.abs().max()) == 0, "all are where they should go already"
    assert float(universal(net, x, uf.linf(0.05), y=y, to=1, loss="margin").delta @ w) > 0


def test_a_mask_holds_what_may_not_change() -> None:
    net, x, y, w = one_class()
    mask = torch.arange(D) < 5
    made = universal(net, x, uf.linf(0.05, mask=mask), y=y)
    assert torch.equal(made.delta[5:], torch.zeros(D - 5)) and torch.allclose(made.delta[:5], 0.05 * w[:5].sign())


def test_learning_is_deterministic_and_leaves_the_world_alone() -> None:
    net = nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.rand(40, D)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    made = [universal(net, x, uf.linf(0.1), epochs=2, seed=s) for s in (0, 0, 1)]
    assert made[0] == made[1] and made[0].sha != made[2].sha
    one = universal_deepfool(net, x, uf.l2(0.5), epochs=1)
    assert one == universal_deepfool(net, x, uf.l2(0.5), epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert all(p.grad is None for p in net.parameters()) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"threat": uf.linf()}, "finite eps"), ({"x": torch.rand(0, D)}, "nothing to learn"), ({"epochs": 0}, "epochs"),
     ({"loss": "hinge"}, "hinge"), ({"clip": 0}, "clip"), ({"x": torch.rand(3, D) + 1}, "bounds")],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(uf.InputError, match=word):
        universal(**{"target": Linear.random((D,)), "x": torch.rand(3, D), "threat": uf.linf(0.1)} | change)


# ---- planted


def plant(value: Tensor) -> Planted:
    from unfooled.attacks.learned import kept

    return planted(kept(value))


def test_a_planted_change_is_a_recipe_of_one_look() -> None:
    net, x, y, w = one_class(60)
    made = plant(0.2 * w.sign())
    assert made.steps == 1 and made.access == uf.Access.LABEL
    text = repr(made)
    assert text == f"planted(what={made.sha!r})" and attacks.parse(text) == made
    assert hash(made) == hash(attacks.parse(text))
    spy = Spy(net)
    out = uf.run(made, spy, x, y, uf.linf(0.2), access=uf.Access.LABEL)
    assert (
        spy.backward_rows == 0
        and spy.forward_rows == out.forward.sum() + out.padding[0] == 2 * len(x) + out.success.sum()
    )
    shown = (x + made.delta).clamp(0, 1)
    assert torch.equal(out.success, net(shown).argmax(1) != y) and out.attacks[0].paper.startswith("Moosavi")
    assert (out.best - shown).abs().max() < 1e-6
    with pytest.raises(uf.AccessError):
        uf.run(made, net, x, y, uf.linf(0.2), access=uf.Access.DECISION)
    with pytest.raises(uf.InputError, match=r"learned for inputs of shape \(24,\), not \(2, 12\)"):
        uf.run(made, net, x.view(-1, 2, 12), y, uf.linf(0.2))
    order = np.random.default_rng(0).permutation(len(x))
    again = uf.run(made, net, x[order], y[order], uf.linf(0.2), batch_size=3)
    assert torch.equal(again.x_adv, out.x_adv[order])
    both = uf.run([made, "pgd()"], net, x, y, uf.linf(0.05))  # one attack of a cascade
    assert both.attacks[0].broken > 0 and both.attacks[1].attempted == len(x) - both.attacks[0].broken


def test_a_planted_change_is_saved_and_read_again(tmp_path: Path) -> None:
    made, path = plant(torch.rand(2, 3)), tmp_path / "change.safetensors"
    made.save(path)
    again = planted(str(path))
    assert again.sha == made.sha and torch.equal(again.delta, made.delta)
    assert attacks.parse(repr(again)) == again and again.key() == made.key()
    made.delta.add_(1)  # a copy
    assert torch.equal(again.delta, made.delta)


def test_files_that_hold_no_change_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"planted": torch.tensor([1.0, torch.nan])}, tmp_path / "nan.safetensors")
    for name, word in (
        ("damaged", "cannot be read"),
        ("other", "holds weight"),
        ("nan", "finite"),
        ("none", "cannot be"),
    ):
        with pytest.raises(uf.InputError, match=word):
            planted(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(uf.InputError, match="name the file"):
        planted("ab" * 32)
    with pytest.raises(uf.InputError, match="must end in"):
        plant(torch.rand(2)).save(tmp_path / "change.npz")


def test_a_matrix_of_universal_perturbations() -> None:
    net, x, y, _ = one_class(80)
    twin = Linear((net.weight * 2).detach(), (net.bias * 2).detach())
    away = Linear(net.weight.detach().flip(0), net.bias.detach().flip(0))  # answers the other class
    matrix = uf.transfer_matrix(
        {"net": net, "twin": twin, "away": away}, lambda t: universal(t, x, uf.linf(0.06), epochs=2), x, y,
        uf.linf(0.06), sources={"net": net}, points="all",
    )  # fmt: skip
    own = matrix.cell("net", "net")
    assert own.n == len(x) and matrix.cell("net", "twin") == own and own.fooled > 0 and own.same_rate == 1
    assert matrix.cell("net", "away").n == 0 and "planted" in matrix.attack


# ---- substitutes


@pytest.mark.parametrize("augment", ["jacobian", "noise", "none"])
@pytest.mark.parametrize("queries", [7, 30, 100])
def test_a_substitute_never_asks_more_than_its_budget(augment: Any, queries: int) -> None:
    net = Linear.random((6,), 3, seed=2)
    spy = Spy(net)
    made = substitute(spy, torch.rand(30, 6), queries=queries, augment=augment, classes=3, rounds=4, epochs=1)
    assert spy.backward_rows == 0
    assert spy.forward_rows == (min(30, queries) if augment == "none" else queries)
    assert made.scores(torch.rand(4, 6)).shape == (4, 3) and made.name == "substitute of Spy"


def test_new_points_lie_along_the_substitutes_own_gradient_and_turn() -> None:
    asked: list[Tensor] = []

    class Target(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            asked.append(v.clone())
            return torch.stack([v[:, 0], v[:, 1], v.sum(1) / 4], 1)

    module = nn.Linear(4, 3)  # linear: its gradient for a class is that class's weights, whatever the point
    x = 0.4 + 0.2 * torch.rand(10, 4)
    substitute(Target(), x, queries=40, module=module, rounds=3, step=0.1, turn=1, epochs=1)
    assert [len(a) for a in asked] == [10, 10, 20]
    change = asked[1].unsqueeze(1) - asked[0]
    near = (change.abs() - 0.1).abs().amax(2).argmin(1)
    assert torch.allclose(change[range(10), near].abs(), torch.full((10, 4), 0.1), atol=1e-6)
    assert sorted(near.tolist()) == list(range(10))
    label = torch.stack([asked[0][:, 0], asked[0][:, 1], asked[0].sum(1) / 4], 1).argmax(1)[near]
    for c in set(label.tolist()):
        assert len({tuple(r) for r in change[range(10), near][label == c].sign().tolist()}) == 1, "one sign per class"
    third = ((asked[2].unsqueeze(1) - torch.cat(asked[:2])).abs() - 0.1).abs().amax(2).min(1).values
    assert third.max() < 1e-5


def test_a_substitute_is_deterministic_and_keeps_the_callers_luck() -> None:
    net, x = Linear.random((6,), 3, seed=2), torch.rand(20, 6)
    state = torch.get_rng_state()
    prints = [substitute(net, x, queries=60, epochs=2, rounds=2, seed=s).fingerprint() for s in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2] and torch.equal(torch.get_rng_state(), state)


def test_a_substitute_learns_the_target_and_lends_its_gradients() -> None:
    data = uf.load_data("digits")
    from unfooled.targets import ZOO

    spy = Spy(ZOO["digits-cnn"].build())
    made = substitute(spy, data.x[:60], queries=600, classes=10)
    assert spy.forward_rows == 600 and spy.backward_rows == 0
    x, y = data.x[100:220], data.y[100:220]
    agree = float((made.scores(x).argmax(1) == spy(x).argmax(1)).float().mean())
    out = uf.run("mi_fgsm()", spy, x, y, uf.linf(0.2), surrogates=[made], access=uf.Access.LABEL)
    assert agree > 0.75 and float(out.success.float().mean()) > 0.3, (agree, out.success.float().mean())
    taught = substitute(spy, data.x[:60], queries=600, access=uf.Access.SCORES)
    assert float((taught.scores(x).argmax(1) == spy(x).argmax(1)).float().mean()) > 0.75


def test_substitutes_that_make_no_sense_are_refused() -> None:
    net, x = Linear.random((6,), 3, seed=2), torch.rand(20, 6)
    with pytest.raises(uf.InputError, match="augment"):
        substitute(net, x, queries=10, augment="mixup")  # type: ignore[arg-type]
    with pytest.raises(uf.InputError, match="queries"):
        substitute(net, x, queries=0)
    with pytest.raises(uf.InputError, match="where 2 classes"):
        substitute(net, x, queries=20, classes=2)
    with pytest.raises(uf.AccessError):
        substitute(uf.Target(net, access=uf.Access.LABEL), x, queries=20, access=uf.Access.SCORES)


def test_imitating_takes_any_proposal() -> None:
    from unfooled.core.oracle import Oracle

    spy = Spy(Linear.random((6,), 3, seed=2))
    door = Oracle(uf.Target(spy), uf.Access.SCORES)
    imitate(door, None, torch.rand(5, 6), lambda at, net, seen, z: iter([torch.rand(3, 6)] * at), rounds=3, epochs=1)
    assert spy.forward_rows == 5 + 0 + 3 + 6


# ---- real images


def test_universal_changes_of_mnist_networks(outside_data: Path) -> None:
    """At Linf 0.25 one change fools most test digits; the gradient one is ahead of the original."""
    from unfooled.targets import ZOO

    published = pytest.importorskip("benchmarks.published")
    x, y = published.images("mnist", slice(0, 500))
    net, ball = ZOO["mnist-cnn"].build(), uf.linf(0.25)
    rates = []
    for made in (
        universal(net, x[:300], ball, epochs=4),
        universal_deepfool(net, x[:300], ball, epochs=2),
    ):
        rates.append(float(uf.run(made, net, x[300:], y[300:], ball).success.float().mean()))
    noise = plant(
        0.25 * torch.randint(0, 2, x.shape[1:], generator=torch.Generator().manual_seed(0)).float() * 2 - 0.25
    )
    chance = float(uf.run(noise, net, x[300:], y[300:], ball).success.float().mean())
    assert rates[0] > 0.6 and rates[1] > 0.3 and rates[0] > rates[1] and chance < 0.2, (rates, chance)
