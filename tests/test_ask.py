"""The door for many rows: the same answers as asking at once, counted, and the caller's world untouched."""

import pytest
import torch

import unfooled as uf
from unfooled.core.ask import Asker, confidences
from unfooled.testing import Linear, Spy


def linear() -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Linear(torch.randn(4, 6), torch.randn(4)), torch.rand(37, 6)


@pytest.mark.parametrize("width", [1, 8, 64, "auto"])
def test_answers_do_not_depend_on_the_batches_and_every_row_is_counted(width: int | str) -> None:
    net, x = linear()
    spy = Spy(net)
    asker = Asker(uf.Target(spy), batch_size=width)
    want = x @ net.weight.T + net.bias
    torch.testing.assert_close(asker.scores(x), want)
    assert torch.equal(asker.labels(x), want.argmax(1))
    torch.testing.assert_close(asker.confidences(x), want.softmax(1))
    assert asker.forward == spy.forward_rows == 3 * 37 and asker.backward == 0
    y = torch.arange(37) % 4
    scores, value, grad = asker.gradient(x, lambda z, rows: z.gather(1, y[rows, None])[:, 0])
    torch.testing.assert_close(scores, want)
    torch.testing.assert_close(value, want.gather(1, y[:, None])[:, 0])
    torch.testing.assert_close(grad, net.weight[y])
    torch.testing.assert_close(asker.value(x, lambda z, rows: z.gather(1, y[rows, None])[:, 0]), value)
    assert asker.backward == 37 and asker.forward == spy.forward_rows


def test_half_precision_scores_come_back_wide() -> None:
    net, x = linear()
    half = uf.Target(lambda v: (v @ net.weight.T + net.bias).half())
    assert Asker(half).scores(x).dtype == torch.float32


def test_the_target_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)).train()
    x = torch.rand(20, 6)
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    asker = Asker(net)
    assert torch.equal(asker.scores(x), asker.scores(x))
    asker.gradient(x, lambda z, rows: z.sum(1))
    assert net.training and net[1].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())


def test_what_was_not_granted_is_refused() -> None:
    net, x = linear()
    asker = Asker(net, access=uf.Access.LABEL)
    assert len(asker.labels(x)) == 37
    with pytest.raises(uf.AccessError, match="scores access"):
        asker.scores(x)


def test_probabilities_are_their_own_confidences() -> None:
    p = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert torch.equal(confidences(p), p)
    torch.testing.assert_close(confidences(p * 2), (p * 2).softmax(1))


def test_what_a_module_raises_on_a_wrong_shape_is_one_sentence() -> None:
    asker = Asker(torch.nn.Linear(6, 4))
    for ask in (asker.scores, asker.labels):
        with pytest.raises(uf.InputError, match="fails on inputs of shape 5 "):
            ask(torch.rand(3, 5))
        with pytest.raises(uf.InputError, match="n at least 1"):
            ask(torch.rand(0, 6))
