"""Objectives: the adversarial one is cross-entropy at the attack's point, with a radius that grows."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfooled.attacks import fgsm, pgd
from unfooled.core.data import Data
from unfooled.core.engine import last_iterate
from unfooled.core.fit import Recipe, Training, fit
from unfooled.core.target import Target
from unfooled.core.threat import l2, linf
from unfooled.errors import InputError
from unfooled.evaluate.hardened import fresh_universals, harden_target
from unfooled.harden import WAYS, objectives, way
from unfooled.harden.objectives import adversarial, standard

STEP = pgd(steps=1, step_size=1.0, start="clean")  # exact on a linear model of two classes


def case() -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(6, 2)
    x = torch.rand(5, 6) * 0.5 + 0.25  # away from the walls of the box
    return module, x, torch.tensor([0, 1, 0, 1, 1]), torch.arange(5)


def worst(module: nn.Linear, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """The closed form: every coordinate moves by eps against the margin's weight."""
    w = module.weight[y] - module.weight[1 - y]
    return F.cross_entropy(module(x - eps * w.sign()), y)


def test_on_a_linear_model_it_is_the_closed_form():
    module, x, y, ids = case()
    loss = adversarial(STEP, linf(0.1))(module, x, y, ids, 0)
    torch.testing.assert_close(loss, worst(module, x, y, 0.1))
    assert loss > standard()(module, x, y, ids, 0)
    loss.backward()
    assert module.weight.grad is not None and x.grad is None


def test_the_radius_grows_from_zero_to_eps():
    module, x, y, ids = case()
    objective = adversarial(STEP, linf(0.2), ramp=4)
    for step, eps in ((0, 0.05), (1, 0.1), (3, 0.2), (100, 0.2)):
        torch.testing.assert_close(objective(module, x, y, ids, step), worst(module, x, y, eps))


def test_luck_belongs_to_the_row_the_step_and_the_seed():
    module, x, y, ids = case()
    noise = pgd(steps=1, step_size=1e-9)  # a random start that goes nowhere
    objective = adversarial(noise, linf(0.2), seed=3)
    alone = torch.stack([objective(module, x[i : i + 1], y[i : i + 1], ids[i : i + 1], 7) for i in range(5)])
    torch.testing.assert_close(objective(module, x, y, ids, 7), alone.mean())
    assert not torch.equal(objective(module, x, y, ids, 7), objective(module, x, y, ids, 8))
    assert not torch.equal(objective(module, x, y, ids, 7), adversarial(noise, linf(0.2))(module, x, y, ids, 7))


def test_a_threat_without_a_radius_is_refused():
    with pytest.raises(InputError, match="finite eps"):
        adversarial(STEP, linf())


# ---- the other objectives, each against its formula


def deep() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return module, torch.rand(7, 6).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.arange(7)


def test_the_mix_is_the_sum_of_its_parts():
    module, x, y, ids = case()
    clean, hard = standard()(module, x, y, ids, 0), adversarial(fgsm(), linf(0.1))(module, x, y, ids, 0)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        found = objectives.mixed(fgsm(), linf(0.1), alpha=alpha)(module, x, y, ids, 0)
        torch.testing.assert_close(found, alpha * clean + (1 - alpha) * hard)
    with pytest.raises(InputError, match="share of the clean loss"):
        objectives.mixed(fgsm(), linf(0.1), alpha=1.5)


def test_trades_climbs_the_divergence_and_adds_it():
    module, x, y, ids = deep()
    attack = pgd(steps=20, step_size=0.2)
    loss = objectives.trades(attack, linf(0.2), beta=3.0)(module, x, y, ids, 0)
    p = module(x).log_softmax(1)

    def divergence(z: torch.Tensor) -> torch.Tensor:
        return (p.exp() * (p - module(z).log_softmax(1))).sum(1)

    found = (loss - F.cross_entropy(module(x), y)) / 3.0
    drawn = torch.stack([divergence((x + 0.2 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)) for _ in range(500)]).amax(0)
    corner = torch.stack(
        [divergence((x + 0.2 * torch.tensor(s)).clamp(0, 1)) for s in itertools.product((-1.0, 1.0), repeat=6)]
    ).amax(0)
    assert drawn.mean() < found.float() <= torch.maximum(corner, drawn).mean() * 1.01
    module[0].weight.grad = None
    loss.backward()
    assert module[0].weight.grad.abs().sum() > 0


def test_attacks_of_some_objectives_see_eval_mode_and_their_losses_train_mode():
    torch.manual_seed(0)
    seen: list[bool] = []
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)).train()
    module.register_forward_hook(lambda m, *_: seen.append(m.training))
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    objectives.trades(pgd(steps=3), linf(0.1))(module, x, y, torch.arange(4), 0)
    assert seen == [False] * 4 + [True] * 2 and module.training and module[1].training
    seen.clear()
    objectives.mart(pgd(steps=3), linf(0.1))(module, x, y, torch.arange(4), 0)
    assert seen == [False] * 3 + [True] * 2 and module.training and module[1].training
    seen.clear()
    objectives.nuclear(linf(0.1))(module, x, y, torch.arange(4), 0)
    assert seen == [False] * 2 + [True] * 2 and module.training and module[1].training


def test_mart_is_its_formula():
    module, x, y, ids = deep()
    loss = objectives.mart(STEP, linf(0.1), beta=2.0)(module, x, y, ids, 0)
    x_adv = last_iterate(STEP, module, x, y, linf(0.1), ids=ids.numpy())
    p, q = module(x).softmax(1), module(x_adv).softmax(1)
    own = F.one_hot(y, 3).bool()
    bce = -q[own].log() - (1 - q.masked_fill(own, 0).amax(1) + 1e-4).log()
    kl = (p * (p.log() - q.log())).sum(1)
    torch.testing.assert_close(loss, bce.mean() + 2.0 * (kl * (1 - p[own])).mean(), check_dtype=False)


def test_the_noisy_step_is_noise_and_one_step_never_projected():
    module, x, y, ids = case()
    far: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, args: far.append(args[0].detach()))
    objectives.noisy_step(linf(0.05), noise=2.0)(module, x, y, ids, 3)
    start, end = (z - x for z in far)
    assert 0.05 < float(start.abs().max()) <= 0.1 + 1e-6
    w = (module.weight[y] - module.weight[1 - y]).sign()
    torch.testing.assert_close(end, start - 0.05 * w)
    far.clear()
    walled = torch.zeros_like(x)
    objectives.noisy_step(linf(0.05), noise=2.0)(module, walled, y, ids, 3)
    start, end = far
    assert (
        0.4 < float((start == 0).double().mean()) < 0.6 and float(start.max()) <= 0.1 + 1e-6
    )  # noise is cut, then steps
    torch.testing.assert_close(end, (start - 0.05 * w).clamp(0, 1))
    for made in (objectives.noisy_step, objectives.nuclear, objectives.Free):
        with pytest.raises(InputError, match="Linf alone"):
            made(l2(0.5))


def test_aligned_gradients_cost_nothing_on_a_linear_model_and_something_on_a_bent_one():
    module, x, y, ids = case()
    torch.testing.assert_close(
        objectives.aligned(standard(), linf(0.1), weight=5.0)(module, x, y, ids, 0),
        standard()(module, x, y, ids, 0),
    )
    bent, x, y, ids = deep()
    more = objectives.aligned(standard(), linf(0.3), weight=5.0)(bent, x, y, ids, 0) - standard()(bent, x, y, ids, 0)
    assert 0.01 < more.item() < 10
    more.backward()
    assert bent[0].weight.grad.abs().sum() > 0


def test_alignment_is_one_minus_the_cosine_of_two_gradients_the_first_a_constant():
    module, x, y, ids = deep()
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    found = objectives.aligned(standard(), linf(0.3), weight=2.0)(module, x, y, ids, 0)
    hook.remove()
    found.backward()
    learned = module[0].weight.grad.clone()

    def slope(z: torch.Tensor) -> torch.Tensor:
        z = z.clone().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(module(z), y), z, create_graph=True)[0]

    at, away = seen[0], seen[1]
    assert torch.equal(at, x) and 0.2 < float((away - x).abs().max()) <= 0.3 + 1e-9
    a, b = slope(at).detach(), slope(away)
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    want = F.cross_entropy(module(x), y) + 2.0 * (1 - cosine).mean()
    torch.testing.assert_close(found, want)
    module[0].weight.grad = None
    want.backward()
    torch.testing.assert_close(learned, module[0].weight.grad)


def test_the_nuclear_norm_is_the_sum_of_singular_values():
    module, x, y, ids = deep()
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    eps, objective = 0.2, objectives.nuclear(linf(0.2), weight=3.0, ramp=4)
    losses_ = {step: objective(module, x, y, ids, step) for step in (0, 1, 7)}
    hook.remove()
    for at, (step, share) in enumerate(((0, 0.25), (1, 0.5), (7, 1.0))):
        clean, start, x_adv, again = seen[4 * at : 4 * at + 4]
        assert torch.equal(clean, x) and torch.equal(again, x)
        torch.testing.assert_close(start, (x + 0.1 * (start - x).sign()).clamp(0, 1))
        assert 0.3 < float((start > x).double().mean()) < 0.7
        leaf = start.clone().requires_grad_(True)
        climbed = F.cross_entropy(module(leaf), y)
        if step % 2:
            climbed = climbed + 3.0 * share * torch.linalg.svdvals(module(leaf) - module(x).detach()).sum() / 7
        (grad,) = torch.autograd.grad(climbed, leaf)
        want = (x + (start + eps * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        torch.testing.assert_close(x_adv, want)
        change = (module(x_adv) - module(x)).detach().numpy()
        norm = float(np.sqrt(np.linalg.eigvalsh(change.T @ change).clip(0)).sum())
        torch.testing.assert_close(
            losses_[step],
            F.cross_entropy(module(x), y) + 3.0 * share * norm / 7,
            check_dtype=False,
            rtol=1e-5,
            atol=1e-6,
        )
    losses_[7].backward()
    assert module[0].weight.grad.abs().sum() > 0


def test_weights_move_against_the_loss_and_come_back():
    module, x, y, ids = deep()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    plain = standard()(module, x, y, ids, 0)
    loss = objectives.weight_perturbed(standard(), gamma=0.01)(module, x, y, ids, 0)
    grads = torch.autograd.grad(plain, [module[0].weight, module[2].weight])
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for layer, g in zip((moved[0], moved[2]), grads, strict=True):
            layer.weight += 0.01 * layer.weight.norm() * g / g.norm()
    want = standard()(moved, x, y, ids, 0)
    torch.testing.assert_close(loss, want)
    assert loss > plain
    loss.backward()
    want.backward()
    torch.testing.assert_close(module[0].weight.grad, moved[0].weight.grad)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    late = objectives.weight_perturbed(standard(), after=5)
    torch.testing.assert_close(late(module, x, y, ids, 4), plain)


def test_perturbed_weights_see_the_examples_made_at_the_true_ones():
    module, x, y, ids = deep()
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    objectives.weight_perturbed(adversarial(pgd(steps=5), linf(0.1)))(module, x, y, ids, 0)
    assert len(calls) == 5 + 1 + 1  # the attack once, the loss at both weights


def test_perturbed_weights_see_the_noisy_step_of_the_true_ones():
    module, x, y, ids = deep()
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    objectives.weight_perturbed(objectives.noisy_step(linf(0.1)), gamma=1.0)(module, x, y, ids, 0)
    start, end, again = seen
    assert torch.equal(end, again) and not torch.equal(start, end)


def test_free_training_is_its_algorithm():
    module, x, y, ids = deep()
    twin, eps = copy.deepcopy(module), 0.15
    free, delta = objectives.Free(linf(eps)), torch.zeros_like(x)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (module, twin))
    for batch in (x, x, x, 1 - x, 1 - x):  # the change goes on from one batch to the next
        mine.zero_grad()
        loss = free(module, batch, y, ids, 0)
        loss.backward()
        mine.step()
        theirs.zero_grad()
        leaf = (batch + delta).clamp(0, 1).requires_grad_(True)
        F.cross_entropy(twin(leaf), y).backward()
        theirs.step()
        delta = (delta + eps * leaf.grad.sign()).clamp(-eps, eps)
    torch.testing.assert_close(module[0].weight, twin[0].weight)
    few = free(module, x[:3], y[:3], ids[:3], 0)
    torch.testing.assert_close(few, F.cross_entropy(twin((x[:3] + delta[:3]).clamp(0, 1)), y[:3]))


def test_free_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    x, y = torch.rand(50, 6), torch.arange(50) % 2
    recipe = Recipe(epochs=4, batch_size=16, lr=0.1, replays=2)

    def begun() -> Training:
        torch.manual_seed(0)
        return Training(nn.Linear(6, 2), x, y, objectives.Free(linf(0.1)), recipe)

    whole, first, second, forgetful = begun(), begun(), begun(), begun()
    for _ in range(4):
        whole.run_epoch()
    first.run_epoch()
    first.run_epoch()
    state, plain = first.state()
    first.run_epoch()  # and back, as after a loss that was not finite
    lost = {k: v for k, v in state.items() if not k.startswith("objective.")}
    for again, tensors in ((first, state), (second, state), (forgetful, lost)):
        again.restore(tensors, plain)
        again.run_epoch()
        again.run_epoch()
    assert torch.equal(first.module.weight, whole.module.weight)
    assert torch.equal(second.module.weight, whole.module.weight)
    assert not torch.equal(forgetful.module.weight, whole.module.weight)


def test_free_training_follows_the_gradient_of_the_weights_own_pass():
    module, x, y, ids = case()
    free = objectives.Free(linf(0.1))
    first = free(module, x, y, ids, 0)
    torch.testing.assert_close(first, standard()(module, x, y, ids, 0))
    first.backward()
    torch.testing.assert_close(free(module, x, y, ids, 1), worst(module, x, y, 0.1))


def test_planted_changes_stay_in_the_ball_on_a_share_of_the_rows():
    module = nn.Linear(6, 2)
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, y = torch.full((2000, 6), 0.5), torch.zeros(2000, dtype=torch.int64)
    stored = [torch.full((6,), 0.3), torch.full((6,), -0.05)]
    objectives.planted(stored, linf(0.1), share=0.5)(module, x, y, torch.arange(2000), 0)
    change = (seen[0] - x)[:, 0]
    assert sorted({round(v, 4) for v in change.tolist()}) == [-0.05, 0.0, 0.1]
    assert 0.45 < float((change != 0).float().mean()) < 0.55
    with pytest.raises(InputError, match="at least one perturbation"):
        objectives.planted([], linf(0.1))


def test_universal_rounds_train_on_what_was_learned_at_their_beginning():
    module, x, y, ids = case()
    asked: list[tuple[float, int]] = []

    def learn(now: nn.Module, at: int) -> torch.Tensor:
        asked.append((float(now.bias[0].detach()), at))
        return torch.full((6,), 0.02 * (at + 1))

    objective = objectives.universal(learn, linf(0.1), steps=3, share=1.0)
    for step in range(7):
        with torch.no_grad():
            module.bias[0] = float(step)
        found = objective(module, x, y, ids, step)
        torch.testing.assert_close(found, F.cross_entropy(module(x + 0.02 * (step // 3 + 1)), y))
    assert asked == [(0.0, 0), (3.0, 1), (6.0, 2)]
    objective(module, x, y, ids, 0)  # another training begins
    assert asked[-1][1] == 0
    with pytest.raises(InputError, match="needs steps"):
        objectives.universal(learn, linf(0.1), steps=0)
    with pytest.raises(InputError, match="must be told how changes are learned"):
        way("universal").objective(linf(0.1))


def test_the_universal_recipe_learns_the_closed_form_of_a_linear_model_and_trains_on_it():
    g = torch.Generator().manual_seed(0)
    y = (torch.arange(400) % 5 > 0).long()  # to turn the many pays
    x = (0.5 + 0.04 * (2 * y - 1)[:, None] + 0.04 * torch.randn(400, 40, generator=g)).clamp(0, 1)
    torch.manual_seed(0)
    module, ball, data = nn.Linear(40, 2), linf(0.1), Data(x, y)
    fit(module, x, y, epochs=10, lr=0.1)
    delta = fresh_universals(data, ball, steps=1).learn(module, 0)
    torch.testing.assert_close(delta, 0.1 * (module.weight[0] - module.weight[1]).detach().sign())
    proof = harden_target(Target(module), data, data.take(20), ball, recipe="universal", epochs=2, suite="fgsm()")
    assert proof.training.settings["objective"] == "universal" and len(proof.training.lines) == 2


def test_dropout_is_of_the_input_and_of_hidden_units_and_leaves_no_trace():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 2))
    seen: dict[int, torch.Tensor] = {}
    for i in (0, 2):  # what the layers work with, after the hooks of the objective
        module[i].register_forward_hook(lambda m, args, out, i=i: seen.__setitem__(i, args[0].detach()))
    x, y = torch.ones(50, 400), torch.arange(50) % 2
    torch.testing.assert_close(
        objectives.dropped(inputs=0, hidden=0)(module, x, y, y, 0), F.cross_entropy(module(x), y)
    )
    plain = seen[2]
    objectives.dropped()(module, x, y, y, 0)
    assert 0.18 < float((seen[0] == 0).double().mean()) < 0.22
    torch.testing.assert_close(seen[0].max(), torch.tensor(1.25))
    objectives.dropped(inputs=0)(module, x, y, y, 0)
    alive = plain > 0
    assert 0.45 < float((seen[2][alive] == 0).double().mean()) < 0.55
    both = alive & (seen[2] > 0)
    torch.testing.assert_close(seen[2][both], 2 * plain[both])
    module(x)
    torch.testing.assert_close(seen[2], plain)
    with pytest.raises(InputError, match="up to 1"):
        objectives.dropped(hidden=1.0)


@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("universal", "gradalign", "ibp")])
def test_a_way_costs_the_passes_that_it_names(name: str):
    module, x, y, ids = deep()
    counted: list[bool] = []
    module.register_forward_hook(lambda *_: counted.append(torch.is_grad_enabled()))
    each = way(name)
    objective = each.objective(l2(0.5) if name == "gaussian" else linf(0.1))
    for visit in range(each.recipe.get("replays", 1)):
        objective(module, x, y, ids, visit).backward()
    assert sum(counted) == each.passes and len(counted) <= each.passes + 1


def test_noise_fills_the_ball_or_stands_in_its_corners():
    module = nn.Linear(6, 2)
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, y = torch.full((500, 6), 0.5), torch.zeros(500, dtype=torch.int64)
    objectives.noised(linf(0.1))(module, x, y, torch.arange(500), 0)
    objectives.noised(linf(0.1), corners=True)(module, x, y, torch.arange(500), 0)
    inside, corners = ((z - 0.5).abs() for z in seen)
    assert 0.045 < float(inside.mean()) < 0.055 and float(inside.max()) <= 0.1 + 1e-6
    torch.testing.assert_close(corners, torch.full_like(corners, 0.1))
