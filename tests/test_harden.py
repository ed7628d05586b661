"""Objectives: the adversarial one is cross-entropy at the attack's point, with a radius that grows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfooled.attacks import pgd
from unfooled.core.threat import linf
from unfooled.errors import InputError
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
