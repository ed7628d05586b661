"""The training loop: it learns, it repeats itself bit by bit, and it leaves the caller's world alone."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfooled.core import fit as fit_module
from unfooled.core.fit import Epoch, Recipe, Training, adversarial, cross_entropy, fit, standard
from unfooled.errors import InputError, UnfooledError


def blobs(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of points that a line separates."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.rand(n, 4, generator=generator) * 0.4 + y[:, None] * 0.5
    return x, y


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def bits(module: nn.Module) -> list[bytes]:
    return [v.numpy().tobytes() for v in module.state_dict().values()]


def test_it_learns_what_a_line_can_separate():
    x, y = blobs()
    module = network()
    before = F.cross_entropy(module.eval()(x), y).item()
    seen: list[Epoch] = []
    history = fit(module, x, y, epochs=5, batch_size=32, lr=0.02, on_epoch=seen.append)
    assert history == seen and [e.epoch for e in history] == [1, 2, 3, 4, 5]
    assert history[-1].loss < history[0].loss < before + 0.2
    assert (module.eval()(x).argmax(1) == y).float().mean() > 0.97


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(ema):
    x, y = blobs()
    made = []
    for seed, spoil in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(spoil)  # the caller's random state must not matter
        module = network()
        fit(module, x, y, epochs=2, batch_size=48, lr=0.01, seed=seed, ema=ema)
        made.append(bits(module))
    assert made[0] == made[1] != made[2]


def test_every_row_is_visited_once_per_epoch_and_ids_are_its_place():
    x, y = blobs(50)
    visited: list[int] = []
    steps: list[int] = []

    def objective(module, xb, yb, ids, step):
        assert torch.equal(xb, x[ids]) and torch.equal(yb, y[ids])
        visited.extend(ids.tolist())
        steps.append(step)
        return standard(module, xb, yb, ids, step)

    fit(network(), x, y, objective, epochs=2, batch_size=16, lr=0.01)
    assert sorted(visited[:50]) == sorted(visited[50:]) == list(range(50)) and visited[:50] != visited[50:]
    assert steps == list(range(8))


def test_the_callers_world_is_as_before_even_after_an_error():
    x, y = blobs()
    module = network()
    module.train()
    module[1].eval()  # a frozen BatchNorm
    module[0].bias.requires_grad_(False)
    frozen = module[0].bias.clone()

    def explode(*_):
        raise RuntimeError("stop")

    for objective in (standard, explode):
        state = torch.get_rng_state()
        with torch.no_grad():
            if objective is explode:
                with pytest.raises(RuntimeError):
                    fit(module, x, y, objective, epochs=1, lr=0.01)
            else:
                fit(module, x, y, objective, epochs=1, lr=0.01)
            assert not torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        assert module.training and module[0].training and not module[1].training
        assert all(p.grad is None for p in module.parameters())
    assert torch.equal(module[0].bias, frozen) and not module[0].bias.requires_grad


def test_training_works_inside_inference_mode():
    x, y = blobs()
    module = network()
    before = bits(module)
    with torch.inference_mode():
        fit(module, x.clone(), y.clone(), epochs=1, lr=0.01)
    assert bits(module) != before


def test_averaging_leaves_the_average_in_the_module():
    x, y = blobs(64)
    start, keep, lr = nn.Linear(4, 2), 0.5, 0.1
    reference, average = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=lr, weight_decay=0.0)
    for step in range(1, 4):  # one batch per epoch: the order of the rows does not matter
        optimizer.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        optimizer.step()
        share = min(keep, (1 + step) / (10 + step))
        for a, r in zip(average.parameters(), reference.parameters(), strict=True):
            a.data = share * a.data + (1 - share) * r.data
    fit(start, x, y, epochs=3, batch_size=64, lr=lr, schedule="constant", ema=keep)
    torch.testing.assert_close(start.weight, average.weight)
    torch.testing.assert_close(start.bias, average.bias)


def test_schedules_end_where_they_should():
    total = 100
    one = [fit_module._rate("onecycle", total)(s) for s in range(total)]
    assert one[0] == pytest.approx(1 / 30) and max(one) == pytest.approx(1, abs=0.01) and one[-1] < 0.01
    assert one.index(max(one)) == pytest.approx(30, abs=1)
    cosine = [fit_module._rate("cosine", total)(s) for s in range(total)]
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine == sorted(cosine, reverse=True)
    assert fit_module._rate("constant", total)(99) == 1
    assert all(fit_module._rate("onecycle", n)(s) >= 0 for n in (1, 2, 3) for s in range(n + 1))


def test_augmentation_draws_from_the_seed_alone():
    x, y = blobs()

    def jitter(xb, generator):
        return xb + 0.1 * torch.randn(xb.shape, generator=generator)

    made = []
    for augment in (jitter, jitter, None):
        module = network()
        fit(module, x, y, epochs=1, lr=0.01, augment=augment)
        made.append(bits(module))
    assert made[0] == made[1] != made[2]


def test_adversarial_training_is_trained_on_what_the_attack_returns():
    x, y = blobs()
    shown = []

    def flip(module, xb, yb, ids, step):
        shown.append(step)
        return 1 - xb

    module = network()
    fit(module, x, y, adversarial(flip), epochs=6, batch_size=32, lr=0.02)
    assert (module.eval()(1 - x).argmax(1) == y).float().mean() > 0.97  # it learned the flipped world
    assert shown == list(range(6 * 7))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"schedule": "step"}, "'step'"),
    ],
)
def test_settings_that_cannot_train_are_refused(wrong, word):
    x, y = blobs()
    with pytest.raises(InputError, match=word):
        fit(network(), x, y, **{"epochs": 1, "lr": 0.01, **wrong})


def test_data_and_modules_that_cannot_train_are_refused():
    x, y = blobs()
    with pytest.raises(InputError, match="as many labels"):
        fit(network(), x, y[:-1], epochs=1)
    with pytest.raises(InputError, match="at least one"):
        fit(network(), x[:0], y[:0], epochs=1)
    with pytest.raises(InputError, match="requires a gradient"):
        fit(network().requires_grad_(False), x, y, epochs=1)


def test_a_loss_that_diverges_stops_the_training():
    x, y = blobs()

    def bad(module, xb, yb, ids, step):
        return standard(module, xb, yb, ids, step) * (math.nan if step > 3 else 1)

    with pytest.raises(UnfooledError, match="lower lr"):
        fit(network(), x, y, bad, epochs=3, batch_size=100, lr=0.01)


# ---- in parts


RECIPES = {
    "adamw": {"lr": 0.01, "ema": 0.9},
    "sgd": {"lr": 0.05, "optimizer": "sgd", "schedule": "cosine", "weight_decay": 1e-3},
    "replayed": {"lr": 0.01, "replays": 3},
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_training_that_is_stopped_and_restored_ends_with_the_same_bits(name):
    x, y = blobs()
    recipe = Recipe(epochs=4, batch_size=48, seed=5, **RECIPES[name])

    def jitter(v: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return v + 0.01 * torch.randn(v.shape, generator=generator)

    whole = Training(network(), x, y, recipe=recipe, augment=jitter)
    for _ in range(4):
        whole.run_epoch()
    first = Training(network(), x, y, recipe=recipe, augment=jitter)
    for _ in range(2):
        first.run_epoch()
    tensors, plain = first.state()
    plain = json.loads(json.dumps(plain))
    del first
    torch.manual_seed(99)
    second = Training(network(seed=7), x, y, recipe=recipe, augment=jitter)
    second.restore(tensors, plain)
    assert second.epoch == 2
    for _ in range(2):
        second.run_epoch()
    assert bits(second.evaluated) == bits(whole.evaluated) and bits(second.module) == bits(whole.module)
    assert [e.loss for e in second.history] == [e.loss for e in whole.history]


def test_a_state_of_another_module_is_refused():
    x, y = blobs()
    tensors, plain = Training(network(), x, y).state()
    with pytest.raises(InputError, match="another module"):
        Training(nn.Linear(4, 2), x, y).restore(tensors, plain)


def test_replays_visit_a_batch_several_times_in_a_row():
    x, y = blobs(40)
    seen: list[list[int]] = []

    def objective(module, xb, yb, ids, step):
        seen.append(ids.tolist())
        return standard(module, xb, yb, ids, step)

    fit(network(), x, y, objective, epochs=1, batch_size=16, replays=2)
    assert len(seen) == 6 and seen[0] == seen[1] != seen[2]


def test_bfloat16_is_inside_the_module_alone_and_learns():
    x, y = blobs()
    module, inside = network(), []
    module[0].register_forward_hook(lambda *parts: inside.append(parts[2].dtype))

    def objective(asked, xb, yb, ids, step):
        scores = asked(xb)
        assert scores.dtype == torch.float32
        return F.cross_entropy(scores, yb)

    fit(module, x, y, objective, epochs=4, batch_size=32, lr=0.02, precision="bf16")
    assert set(inside) == {torch.bfloat16} and module[0].weight.dtype == torch.float32
    assert (module.eval()(x).argmax(1) == y).float().mean() > 0.95


def test_settings_that_make_no_sense_are_named():
    x, y = blobs(10)
    for bad, said in (
        ({"replays": 0}, "replays"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"precision": "fp8"}, "bf16"),
    ):
        with pytest.raises(InputError, match=said):
            fit(network(), x, y, **bad)


# ---- labels, extra data, bytes


def test_smoothing_is_in_the_loss_while_the_training_runs_and_nowhere_else():
    x, y = blobs()
    found = {}
    for smoothing in (0.0, 0.3):

        def objective(module, xb, yb, ids, step, smoothing=smoothing):
            scores = module(xb)
            loss = cross_entropy(scores, yb)
            assert torch.equal(loss, F.cross_entropy(scores, yb, label_smoothing=smoothing))
            return loss

        module = network()
        fit(module, x, y, objective, epochs=30, batch_size=100, lr=0.05, smoothing=smoothing)
        found[smoothing] = module.eval()(x).softmax(1).amax(1).mean().item()
        assert cross_entropy(torch.eye(2), torch.arange(2)) == F.cross_entropy(torch.eye(2), torch.arange(2))
    assert found[0.3] == pytest.approx(0.85, abs=0.03) and found[0.0] > 0.95  # 1 - 0.3 / 2 is what smoothing asks for
    with pytest.raises(InputError, match="smoothing"):
        fit(network(), x, y, smoothing=1.0)


def test_extra_rows_are_the_share_of_every_batch_that_was_asked_for():
    x, y = blobs(50)
    more = (x[:35] + 10, y[:35])
    seen: list[torch.Tensor] = []

    def objective(module, xb, yb, ids, step):
        rows, labels = torch.cat([x, more[0]]), torch.cat([y, more[1]])
        assert torch.equal(xb, rows[ids]) and torch.equal(yb, labels[ids])
        seen.append(ids)
        return standard(module, xb, yb, ids, step)

    fit(network(), x, y, objective, epochs=4, batch_size=20, mix=0.3, extra=more)
    per_epoch = len(seen) // 4
    assert per_epoch == 4 and [len(ids) for ids in seen[:4]] == [20, 20, 20, 11]  # 14 + 6, the last 8 + 3
    assert [int((ids >= 50).sum()) for ids in seen[:4]] == [6, 6, 6, 3]
    first = torch.cat(seen[:per_epoch])
    assert sorted(first[first < 50].tolist()) == list(range(50))
    drawn = first[first >= 50]
    assert len(drawn.unique()) == len(drawn) == 21  # none twice before all were there once
    with pytest.raises(InputError, match="Extra rows"):
        fit(network(), x, y, extra=(torch.rand(5, 3), y[:5]))
    with pytest.raises(InputError, match="mix"):
        fit(network(), x, y, extra=more, mix=1.0)


def test_training_with_extra_rows_is_restored_to_the_same_bits():
    x, y = blobs()
    how = {"recipe": Recipe(epochs=4, batch_size=48, lr=0.01, mix=0.6), "extra": (x[:30] + 0.1, y[:30])}
    whole = Training(network(), x, y, **how)
    for _ in range(4):
        whole.run_epoch()
    first = Training(network(), x, y, **how)
    first.run_epoch()
    second = Training(network(seed=7), x, y, **how)
    second.restore(*first.state())
    for _ in range(3):
        second.run_epoch()
    assert bits(second.module) == bits(whole.module)
    other = Training(network(), x, y, recipe=how["recipe"])
    for _ in range(4):
        other.run_epoch()
    assert bits(other.module) != bits(whole.module)


def test_bytes_are_trained_on_as_the_floats_that_they_stand_for():
    x, y = blobs()
    whole = (x * 255).round().to(torch.uint8)
    seen = []

    def objective(module, xb, yb, ids, step):
        seen.append((xb, whole[ids].numpy().astype("float32") / 255))
        return standard(module, xb, yb, ids, step)

    module, floats = network(), network()
    fit(module, whole, y, objective, epochs=2, lr=0.01)
    fit(floats, whole.float() / 255, y, epochs=2, lr=0.01)
    assert bits(module) == bits(floats)
    assert all((a.numpy() == b).all() for a, b in seen)


def test_averages_take_shared_weights_once_and_buffers_that_are_not_saved() -> None:
    class Net(nn.Module):
        def __init__(self, *, tied: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.load_state_dict(self.a.state_dict())
            if tied:
                self.b.weight = self.a.weight
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen += 1
            return self.a(x) + self.b(x)

    torch.manual_seed(0)
    nets = [Net(tied=tied) for tied in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, y = torch.rand(8, 4), torch.arange(8) % 4
    recipe = Recipe(epochs=1, batch_size=8, lr=0.1, ema=0.5, schedule="constant")
    moved = []
    for net in nets:
        begun = net.a.weight.detach().clone()
        training = Training(net, x, y, recipe=recipe)
        training.run_epoch()
        share = (training.evaluated.a.weight - begun) / (net.a.weight - begun)
        moved.append(share.detach())
        assert float(training.evaluated.seen) == pytest.approx(float(share.mean().detach()))
    assert torch.allclose(moved[0], moved[1], atol=1e-5) and bool((moved[0] < 0.99).all())
