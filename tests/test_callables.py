"""Targets of other kinds: networks on sequences, and functions that return NumPy arrays or lists."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.errors import InputError, TargetError


class Reader(nn.Module):
    """A recurrent classifier of sequences [n, t, f + 1] whose last feature says which steps are there at all."""

    def __init__(self, kind: type[nn.RNNBase], features: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.cell = kind(features, 12, batch_first=True)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1]
        out, _ = self.cell(x[..., :-1] * there[..., None])
        last = (there.sum(1).long() - 1).clamp(min=0)
        return self.head(out[torch.arange(len(x)), last]) * 8


@pytest.mark.parametrize("attack", ["pgd(steps=30)", "apgd(steps=30, loss='margin')", "square(queries=400)"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_networks_fall_on_sequences_of_any_length(kind: type[nn.RNNBase], attack: str) -> None:
    torch.manual_seed(1)
    net = Reader(kind).eval()
    g = torch.Generator().manual_seed(2)
    x = torch.rand(10, 7, 4, generator=g)
    lengths = torch.randint(2, 8, (10,), generator=g)
    x[..., -1] = (torch.arange(7) < lengths[:, None]).float()
    with torch.no_grad():
        net.head.bias -= net(x).mean(0) / 8  # all classes are about equally likely
    y = net(x).argmax(1)
    mask = torch.ones(7, 4, dtype=torch.bool)
    mask[:, -1] = False  # how long a sequence is cannot be changed
    found = uf.run(attack, net, x, y, uf.linf(0.4, mask=mask))
    assert found.success.float().mean() >= 0.5
    assert torch.equal(found.x_adv[..., -1], x[..., -1])
    assert (net(found.x_adv).argmax(1) != y).eq(found.success).all()
    assert net.training is False and all(p.grad is None for p in net.parameters())


def bright(x: Tensor) -> np.ndarray:
    mean = x.numpy().reshape(len(x), -1).mean(1)
    return np.stack([0.5 - mean, mean - 0.5], 1) * 20


ANSWERS = {
    "array": bright,
    "float64 array": lambda x: bright(x).astype(np.float64),
    "lists": lambda x: bright(x).tolist(),
    "tuple of arrays": lambda x: (bright(x), np.zeros((len(x), 5, 5), np.float32)),
    "dict of arrays": lambda x: {"scores": bright(x), "other": "text"},
    "a column of log-odds": lambda x: bright(x)[:, 1:] * 2,
    "probabilities": lambda x: torch.from_numpy(bright(x)).softmax(1).numpy(),
}


@pytest.mark.parametrize("attack", ["square(queries=200)", "ray(queries=200)"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_functions_that_return_arrays_or_lists_are_attacked_through_their_scores(kind: str, attack: str) -> None:
    x, y = torch.full((6, 1, 4, 4), 0.45), torch.zeros(6, dtype=torch.int64)
    target = uf.Target(ANSWERS[kind], name=kind)
    if kind == "probabilities":
        target.kind = "probabilities"
    found = uf.run(attack, target, x, y, uf.linf(0.1))
    assert found.success.all() and (bright(found.x_adv).argmax(1) == 1).all()


def test_their_missing_gradient_is_said_in_a_sentence() -> None:
    x, y = torch.full((6, 1, 4, 4), 0.45), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(TargetError) as error:
        uf.run("pgd(steps=3)", lambda v: bright(v.detach()), x, y, uf.linf(0.1))
    assert "access scores" in str(error.value)
    result = uf.evaluate(lambda v: bright(v.detach()), x, y, "linf(0.1)", suite="quick")
    assert result.count(uf.Status.BROKEN) == 6
    found = {f.id: f.sentence for f in result.findings}
    assert "does not depend on the input through autograd" in found["D2"] and "ndarray" in found["C2"]


@pytest.mark.parametrize("answer", [[["a", "b"]], [[1.0], [2.0, 3.0]], np.array([{"a": 1}] * 2), "text", None, []])
def test_answers_that_are_no_numbers_are_refused_in_a_sentence(answer: object) -> None:
    with pytest.raises((TargetError, InputError)) as error:
        uf.Target(lambda x: answer).scores(torch.rand(2, 3))
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
