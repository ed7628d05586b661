"""Hardening: it hardens, it keeps its best, it says what went wrong, and it survives being killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import unfooled as uf
from unfooled import harden
from unfooled.core import fit as core_fit
from unfooled.core.fit import Recipe
from unfooled.core.result import Status
from unfooled.harden import objectives, trainer
from unfooled.harden.trainer import Line


def strong_and_weak_features(n: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """One coordinate that is far apart and usually right, many that are near and together always right."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    sign = (2 * y - 1).float()
    flipped = torch.where(torch.rand(n, generator=g) < 0.2, -sign, sign)
    weak = 0.5 + 0.04 * sign[:, None] + 0.04 * torch.randn(n, 40, generator=g)
    return torch.cat([(0.5 + 0.4 * flipped)[:, None], weak], 1).clamp(0, 1), y


def linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(41, 2)


RECIPE = Recipe(epochs=15, batch_size=64, lr=0.03)
BALL = uf.linf(0.1)
STEP = uf.attacks.fgsm()


def test_adversarial_training_gives_up_the_weak_features_and_plain_training_does_not() -> None:
    x, y = strong_and_weak_features()
    found = {}
    for name, objective in (("plain", objectives.standard()), ("hard", objectives.adversarial(STEP, BALL))):
        module = linear()
        longer = Recipe(epochs=40, batch_size=64, lr=0.2)
        done = trainer.fit(module, (x, y), objective, threat=BALL, recipe=longer, validation=200, choose="last")
        found[name] = done.best
        again = uf.run(trainer.JUDGE, module, *strong_and_weak_features(), BALL)
        survived = sum(s == "survived" for s in again.status) / len(again.status)
        assert abs(survived - found[name].strong) < 0.15
    assert found["plain"].strong < 0.3 and found["hard"].strong > 0.7
    assert found["plain"].clean > found["hard"].clean + 0.05


def test_the_best_epoch_is_kept_by_what_was_asked_for() -> None:
    x, y = strong_and_weak_features()
    for choose, key in (("adversarial", "strong"), ("clean", "clean")):
        module, seen = linear(), []
        done = trainer.fit(
            module, (x, y), objectives.standard(), threat=BALL, recipe=RECIPE, choose=choose, validation=200,
            on_line=seen.append,
        )  # fmt: skip
        assert list(done.lines) == seen
        values = [getattr(line, key) for line in done.lines]
        assert getattr(done.best, key) == max(values) and done.chosen == 1 + values.index(max(values))
    last = trainer.fit(linear(), (x, y), objectives.standard(), threat=BALL, recipe=RECIPE, choose="last")
    assert last.chosen == 15
    early = trainer.fit(linear(), (x, y), objectives.standard(), threat=BALL, recipe=RECIPE, patience=2)
    assert len(early.lines) < 15 and len(early.lines) - early.chosen == 2


def test_the_module_holds_the_chosen_epochs_weights() -> None:
    x, y = strong_and_weak_features()
    module, kept = linear(), {}
    val = strong_and_weak_features(300)

    def keep(line: Line) -> None:
        kept[line.epoch] = module.weight.detach().clone()

    done = trainer.fit(module, (x, y), objectives.standard(), threat=BALL, recipe=RECIPE, validation=val, on_line=keep)
    assert torch.equal(module.weight, kept[done.chosen])


def test_a_loss_that_is_not_finite_goes_back_and_on_more_slowly() -> None:
    x, y = strong_and_weak_features()
    calls = []

    def objective(module, xb, yb, ids, step):
        calls.append(step)
        loss = F.cross_entropy(module(xb), yb)
        return loss * float("nan") if len(calls) in (15, 16) else loss

    module = linear()
    done = trainer.fit(module, (x, y), objective, threat=BALL, recipe=RECIPE, validation=200)
    assert len(done.lines) == 15 and sum("last good epoch" in alarm for alarm in done.alarms) == 1
    assert done.best.clean > 0.7 and bool(module.weight.isfinite().all())
    assert max(line.lr for line in done.lines[3:]) <= 0.5 * RECIPE.lr + 1e-9

    twice: list[int] = []

    def stubborn(module, xb, yb, ids, step):
        twice.append(step)
        loss = F.cross_entropy(module(xb), yb)
        return loss * float("nan") if len(twice) in (15, 22) else loss

    done = trainer.fit(linear(), (x, y), stubborn, threat=BALL, recipe=RECIPE, validation=200)
    assert [alarm.partition("on with ")[2][:4] for alarm in done.alarms[:2]] == [
        "0.5 ",
        "0.25",
    ]  # two attempts at one epoch

    def hopeless(module, xb, yb, ids, step):
        return F.cross_entropy(module(xb), yb) * float("nan")

    module = linear()
    with pytest.raises(uf.UnfooledError, match="loss became nan"):
        trainer.fit(module, (x, y), hopeless, threat=BALL, recipe=RECIPE)
    assert torch.equal(module.weight, linear().weight), "a training that failed takes nothing from the module"


def test_what_an_objective_raises_is_raised_and_the_best_epoch_so_far_is_kept() -> None:
    x, y = strong_and_weak_features()

    def odd(module, xb, yb, ids, step):
        if step == 20:
            raise uf.InputError("step 20 is odd")
        return F.cross_entropy(module(xb), yb)

    module, lines = linear(), []
    with pytest.raises(uf.InputError, match="step 20 is odd"):
        trainer.fit(module, (x, y), odd, threat=BALL, recipe=RECIPE, validation=200, on_line=lines.append)
    assert len(lines) == 2 and not torch.equal(module.weight, linear().weight)
    shown = module(trainer.split(uf.Data(x, y), 200, 0)[1].x).argmax(1) == trainer.split(uf.Data(x, y), 200, 0)[1].y
    assert float(shown.double().mean()) in [line.clean for line in lines]


def test_a_ways_own_settings_hold_beside_a_recipe_and_give_way_to_it() -> None:
    x, y = strong_and_weak_features(100)
    for given, replays in ((Recipe(epochs=2, batch_size=20), 4), (Recipe(epochs=2, batch_size=20, replays=3), 3)):
        done = trainer.fit(linear(), (x, y), "free", threat=BALL, recipe=given, validation=20)
        assert done.settings["recipe"]["replays"] == replays and done.lines[0].images == 80 * replays
        assert done.settings["recipe"]["batch_size"] == 20


def test_l1_has_a_weak_attack_too_and_one_row_left_over_joins_a_batch() -> None:
    x, y = strong_and_weak_features(84)
    normal = nn.Sequential(linear(), nn.BatchNorm1d(2))  # knows no batch of one
    sizes: list[int] = []

    def seen(module, xb, yb, ids, step):
        sizes.append(len(xb))
        return F.cross_entropy(module(xb), yb)

    done = trainer.fit(normal, (x, y), seen, threat="l1(0.5)", recipe=Recipe(epochs=1, batch_size=21), validation=20)
    assert sizes == [21, 21, 22] and done.weak == "pgd(steps=1, step_size=1)"
    assert core_fit.batches(64, 21) == 3 and core_fit.batches(65, 21) == 4 and core_fit.batches(3, 1) == 3
    assert core_fit.batches(1, 21) == 1


def test_training_needs_no_other_mode_around_it() -> None:
    x, y = strong_and_weak_features(60)
    module = linear()
    with torch.inference_mode():
        trainer.fit(module, (x, y.int()), "n-fgsm", threat=BALL, recipe=Recipe(epochs=1, lr=0.1), validation=20)
    assert not torch.equal(module.weight, linear().weight)


def test_attempts_are_counted_across_a_resume(tmp_path: Path) -> None:
    x, y = strong_and_weak_features(100)
    how = {"threat": BALL, "recipe": Recipe(epochs=4, batch_size=20), "validation": 20, "out": tmp_path / "t"}
    calls: list[int] = []

    def at_first(module, xb, yb, ids, step):
        calls.append(step)
        return F.cross_entropy(module(xb), yb) * (float("nan") if len(calls) in (5, 9, 13) else 1)

    def stop(line: Line) -> None:
        if line.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(linear(), (x, y), at_first, name="o", on_line=stop, **how)
    assert json.loads((tmp_path / "t" / "training.json").read_text())["strikes"] == 3
    done = trainer.fit(
        linear(), (x, y), lambda m, a, b, ids, step: F.cross_entropy(m(a), b) * float("nan"), name="o", resume=True,
        **how,
    )  # fmt: skip
    assert len(done.lines) == 2 and len(done.alarms) == 4 and "Training ended there" in done.alarms[3]


def test_weights_that_are_no_numbers_are_no_good_epoch() -> None:
    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    x, y = strong_and_weak_features()
    steps = math.ceil((len(x) - 200) / RECIPE.batch_size)
    calls: list[int] = []

    def objective(module, xb, yb, ids, step):
        calls.append(step)
        loss = F.cross_entropy(module(xb), yb)
        return Poisoned.apply(loss) if len(calls) == 2 * steps else loss  # the last step of an epoch

    module = linear()
    done = trainer.fit(module, (x, y), objective, threat=BALL, recipe=RECIPE, validation=200, choose="clean")
    assert bool(module.weight.isfinite().all()) and len(done.lines) == RECIPE.epochs
    assert sum("last good epoch" in alarm for alarm in done.alarms) == 1 and done.best.clean < 1


@pytest.mark.parametrize("name", [name for name, way in harden.WAYS.items() if way.make and name != "gaussian"])
def test_smoothing_reaches_every_way_and_not_the_examples_it_makes(name: str) -> None:
    x, y = strong_and_weak_features(64)
    seen: dict[float, list[torch.Tensor]] = {0.0: [], 0.2: []}
    weights = []
    for smoothing, shown in seen.items():
        module = linear()
        module.register_forward_hook(lambda m, given, scores, shown=shown: shown.append(given[0].detach().clone()))
        objective = harden.way(name).objective(BALL)
        core_fit.fit(module, x, y, objective, epochs=1, batch_size=64, smoothing=smoothing, optimizer="sgd")
        weights.append(module.weight)
    assert not torch.equal(*weights)
    if name not in ("free", "awp"):  # their examples follow the gradients of the smoothed loss itself
        assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


def test_data_come_as_a_pair_a_loader_a_name_or_bytes() -> None:
    x, y = strong_and_weak_features()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=100)
    made, short = [], Recipe(epochs=2, batch_size=64, lr=0.03)
    for data in ((x, y), loader, [(x[:300], y[:300]), (x[300:], y[300:])], uf.load_data((x, y))):
        module = linear()
        trainer.fit(module, data, objectives.standard(), threat=BALL, recipe=short, choose="last")
        made.append(module.weight)
    assert all(torch.equal(made[0], other) for other in made[1:])
    whole = (x * 255).round().to(torch.uint8)
    found = []
    for rows in (whole, whole.float() / 255):
        module = linear()
        done = trainer.fit(module, (rows, y), objectives.standard(), threat=BALL, recipe=short, extra=(rows[:9], y[:9]))
        found.append((module.weight, [(n.loss, n.clean, n.strong) for n in done.lines]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def alive(steps: int) -> tuple[int, int, int]:
    """Of all batches shown to the module: how many there were, the most alive at once, and those alive at the end."""
    x, y = strong_and_weak_features(512)
    module, shown, most = linear(), [], [0]

    def seen(_: nn.Module, given: tuple[torch.Tensor], scores: torch.Tensor) -> None:
        shown.extend(StorageWeakRef(t.untyped_storage()) for t in (given[0], scores))
        most[0] = max(most[0], sum(not each.expired() for each in shown))

    hook = module.register_forward_hook(seen)
    objective = objectives.adversarial(uf.attacks.pgd(steps=steps), BALL)
    core_fit.fit(module, x, y, objective, epochs=1, batch_size=128)
    hook.remove()
    return len(shown), most[0], sum(not each.expired() for each in shown)


def test_memory_does_not_grow_with_the_steps_of_the_attack_and_no_example_is_kept() -> None:
    few, many = alive(2), alive(20)
    assert (few[0], many[0]) == (2 * 4 * 3, 2 * 4 * 21)  # images and scores of four batches, two steps or twenty
    assert few[1] == many[1] <= 4
    assert few[2] == many[2] == 0


def test_alarms_are_about_what_the_lines_say() -> None:
    log = trainer._Log("adversarial", 500, 10)
    for epoch, (weak, strong) in enumerate([(0.5, 0.4), (0.55, 0.45)], 1):
        assert log.add(Line(epoch, 1.0, 0.1, 0.9, weak, strong, 1.0)).alarm == ""
    assert log.add(Line(3, 0.9, 0.1, 0.95, 0.9, 0.02, 1.0)).alarm == "catastrophic overfitting"
    assert log.ended(None) and log.best == 2 and "N-FGSM" in log.alarms[0]
    for n, said in ((1000, "robust overfitting"), (100, "")):  # of 100 rows, 41 instead of 50 may be chance
        slow = trainer._Log("adversarial", n, 10)
        for epoch, strong in enumerate([0.5, 0.45, 0.44, 0.43, 0.42, 0.41], 1):
            line = slow.add(Line(epoch, 1.0 - 0.1 * epoch, 0.1, 0.9, strong + 0.05, strong, 1.0))
        assert line.alarm == said and not slow.ended(None) and slow.best == 1
    for best, said in ((0.3, "catastrophic overfitting"), (0.1, "")):  # one of ten classes is right by chance
        chance = trainer._Log("adversarial", 500, 10)
        chance.add(Line(1, 1.0, 0.1, 0.3, best, best, 1.0))
        assert chance.add(Line(2, 1.0, 0.1, 0.9, 0.8, 0.01, 1.0)).alarm == said
    chance = trainer._Log("adversarial", 20, 10)  # two of twenty right, then none: nothing has been learned yet
    for epoch, strong in enumerate([0.1, 0.0, 0.0, 0.0, 0.0, 0.0], 1):
        assert chance.add(Line(epoch, 1.0 / epoch, 0.1, 0.9, strong, strong, 1.0)).alarm == ""
    risen = trainer._Log("adversarial", 1000, 10)
    for epoch, strong in enumerate([0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.6], 1):
        risen.add(Line(epoch, 1.0 / epoch, 0.1, 0.9, strong, strong, 1.0))
        assert len(risen.alarms) == (epoch == 6)  # taken back
    assert risen.best == 7 and not any(line.alarm for line in risen.lines)
    steady = trainer._Log("adversarial", 500, 10)
    for epoch in range(1, 12):
        assert steady.add(Line(epoch, 1.0 / epoch, 0.1, 0.9, 0.5, 0.45 + 0.001 * (epoch % 3), 1.0)).alarm == ""


def test_bad_input_is_one_sentence() -> None:
    x, y = strong_and_weak_features(60)

    def refuse(said: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor, **more: object) -> None:
        with pytest.raises(uf.InputError, match=said):
            trainer.fit(module, (x, y), objectives.standard(), **{"threat": BALL, "validation": 20, **more})

    refuse("one label", linear(), x, y * 0)
    refuse("classes 0 to 1", linear(), x, y + 1)
    refuse("no parameter to train", linear().requires_grad_(False), x, y)
    refuse("no parameter to train", nn.Flatten(), x, y)
    refuse("finite eps", linear(), x, y, threat=uf.linf())
    refuse("leaves nothing", linear(), x, y, validation=60)
    refuse("not finite", linear(), x * float("nan"), y)
    refuse("one whole-number label an input", linear(), x, y[:-1])
    refuse("one whole-number label an input", linear(), x, y.float())
    refuse("classes 0 to 1", linear(), x, y, extra=(x, y + 2))
    refuse("classes 0 to 1", linear(), x, y, validation=(x, y + 2))
    refuse("as the data", linear(), x, y, extra=(x[:, :40], y))
    refuse("no augmentation", linear(), x, y, augment="flip")
    refuse("cannot be cut", linear(), x, y, augment="flips")
    refuse("choose is", linear(), x, y, choose="best")
    refuse("is no threat", linear(), x, y, threat="linf")
    refuse("is no threat", linear(), x, y, threat=0.1)
    refuse("no attack 'pdg'", linear(), x, y, judge="pdg()")
    refuse("no attack 'fgms'", linear(), x, y, weak="fgms()")
    wrong = torch.where((torch.arange(60) == 3) | (torch.arange(60) == 5), 3, y)
    refuse("label 3 of row 3 is none of .* nor are those of 1 more row", linear(), x, wrong)
    named = uf.Data(x, torch.where(torch.arange(60) == 3, 3, y), files=tuple(f"own.npz[{i}]" for i in range(60)))
    refuse(r"label 3 of own.npz\[3\] is none of the module's classes 0 to 1;", linear(), x, y, extra=named)
    broken = linear()
    broken.bias.data[1] = float("nan")
    refuse("weights in bias are not all finite", broken, x, y)
    refuse(r"span \[0, 255\].* the threat's bounds are \[0, 1\]", linear(), (x > 0.5) * 255.0, y)
    refuse("patience counts epochs", linear(), x, y, patience=0)
    refuse("give out=", linear(), x, y, resume=True)
    refuse("a number of rows, or rows", linear(), x, y, validation=0.2)
    refuse("is no recipe", linear(), x, y, recipe="pgd")
    refuse("one whole-number label an input", linear(), x, y[:, None])
    refuse("one whole-number label an input", linear(), x, y > 0)
    refuse("give target.module", uf.Target(linear()), x, y)
    refuse("cannot be moved to", linear(), x, y, device="meta:nowhere")
    with pytest.raises(uf.InputError, match="returns one number"):
        trainer.fit(linear(), (x, y), lambda m, a, b, ids, step: m(a).sum(1), threat=BALL, validation=20)
    mute = linear()
    mute.register_forward_hook(lambda m, given, scores: scores * float("nan"))
    refuse("answers NaN", mute, x, y)
    for objective, said in (("pdg", "Did you mean 'pgd'"), ("universal", "must be told"), (3, "3 is no objective")):
        with pytest.raises(uf.InputError, match=said):
            trainer.fit(linear(), (x, y), objective, threat=BALL, validation=20)


def test_words_mean_what_they_name() -> None:
    x, y = strong_and_weak_features(200)
    recipe = Recipe(epochs=10, batch_size=64, lr=0.03)
    made = harden.way("fgsm-rs").objective(BALL, ramp=3)  # a tenth of the steps: 180 rows are trained on
    weights = []
    for objective, threat, judge in ((made, BALL, uf.attacks.pgd(steps=3)), ("fgsm-rs", "linf(0.1)", "pgd(steps=3)")):
        module = linear()
        done = trainer.fit(module, (x, y), objective, threat=threat, recipe=recipe, judge=judge, choose="last")
        weights.append(module.weight)
    assert torch.equal(*weights)
    assert done.settings["objective"] == "fgsm-rs" and (done.judge, done.threat) == ("pgd(steps=3)", "linf(0.1)")
    with pytest.raises(uf.InputError, match="N-FGSM knows Linf alone"):
        trainer.fit(linear(), (x, y), "n-fgsm", threat="l2(0.1)")
    few = trainer.fit(linear(), (x[:40], y[:40]), "free", threat=BALL, patience=1)
    assert few.settings["recipe"]["replays"] == 4


def test_what_judges_is_not_trained_on() -> None:
    x, y = strong_and_weak_features(120)
    once, near = Recipe(epochs=1, batch_size=100, mix=0.5), x[:20].clone()
    near[:, 3] = 0.5001  # almost the same rows
    said = "Not trained on, for test or validation data hold the same: "
    for judged, images, notes in (
        (x[:20], 200, (f"{said}20 training rows and 1 extra row.",)), (near, 240, ()),
    ):  # fmt: skip
        done = trainer.fit(
            linear(), (x, y), objectives.standard(), threat=BALL, recipe=replace(once, batch_size=2 * len(x)),
            validation=(judged, y[:20]), extra=(x[19:60], y[19:60]),
        )  # fmt: skip
        assert (done.best.images, done.notes) == (images, notes)
        assert (said in done.sentence()) == bool(notes)
    with pytest.raises(uf.InputError, match="Every extra row is a test or validation row too"):
        trainer.fit(
            linear(), (x, y), objectives.standard(), threat=BALL, validation=(near, y[:20]), extra=(near, y[:20])
        )
    one = trainer.fit(linear(), (x, y), objectives.standard(), threat=BALL, recipe=once, validation=(near[:1], y[:1]))
    assert "accuracy on 1 row that" in one.sentence() and "chosen by adversarial accuracy" in one.sentence()


def test_a_training_interrupted_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    x, y = strong_and_weak_features()
    how = {"threat": BALL, "recipe": Recipe(epochs=6, batch_size=64, lr=0.03, ema=0.9), "validation": 100, "name": "o"}
    whole = linear()
    want = trainer.fit(whole, (x, y), objectives.adversarial(STEP, BALL), **how)

    class Enough(Exception):
        pass

    def stop(line: Line) -> None:
        if line.epoch == 3:
            raise Enough

    with pytest.raises(Enough):
        trainer.fit(linear(), (x, y), objectives.adversarial(STEP, BALL), out=tmp_path / "t", on_line=stop, **how)
    files = sorted(p.name for p in (tmp_path / "t").iterdir())
    assert len(files) == 3 and files[2] == "training.json"
    module = linear()
    done = trainer.fit(module, (x, y), objectives.adversarial(STEP, BALL), out=tmp_path / "t", resume=True, **how)
    assert torch.equal(module.weight, whole.weight) and torch.equal(module.bias, whole.bias)
    assert [(n.loss, n.strong) for n in done.lines] == [(n.loss, n.strong) for n in want.lines]
    for other, said in (
        ({"recipe": replace(how["recipe"], lr=0.02)}, "begun with lr 0.03, not 0.02"),
        ({"recipe": replace(how["recipe"], seed=1)}, "begun with seed 0, not 1"),
        ({"name": "p"}, "begun with objective o, not p"),
        ({"validation": 99}, "begun with another data"),
    ):
        with pytest.raises(uf.InputError, match=said):
            trainer.fit(linear(), (x, y), objectives.standard(), out=tmp_path / "t", resume=True, **how | other)
    with pytest.raises(uf.InputError, match="exists already"):
        trainer.fit(linear(), (x, y), objectives.standard(), out=tmp_path / "t", **how)

    def halt(*_: object) -> torch.Tensor:
        raise Enough

    with pytest.raises(Enough):
        trainer.fit(linear(), (x, y), halt, out=tmp_path / "first", **how)
    (tmp_path / "first" / "state-0001.safetensors").write_bytes(b"killed before the index was written")
    module = linear()
    trainer.fit(module, (x, y), objectives.adversarial(STEP, BALL), out=tmp_path / "first", resume=True, **how)
    assert torch.equal(module.weight, whole.weight)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.safetensors").write_bytes(b"mine")
    for other in ("mine", "nowhere"):
        with pytest.raises(uf.InputError, match=r"training\.json cannot be read"):
            trainer.fit(linear(), (x, y), objectives.standard(), out=tmp_path / other, resume=True, **how)
    assert (tmp_path / "mine" / "weights.safetensors").read_bytes() == b"mine"


KILLED = """
import sys, torch, unfooled as uf
sys.path.insert(0, {root!r})
from tests.test_trainer import BALL, STEP, linear, strong_and_weak_features
from unfooled.core.fit import Recipe
from unfooled.core.result import Status
from unfooled.harden import objectives, trainer
torch.set_num_threads(1)
x, y = strong_and_weak_features()
module = linear()
trainer.fit(module, (x, y), objectives.adversarial(STEP, BALL), threat=BALL, recipe=Recipe(epochs=12, batch_size=64),
            validation=100, name="o", out=sys.argv[1], resume=sys.argv[2] == "resume")
torch.save({{"weight": module.weight.detach()}}, sys.argv[1] + "/done.pt")
"""


def test_a_training_that_was_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    code = KILLED.format(root=str(Path(__file__).parents[1]))
    ends = []
    for name, kills in (("whole", 0), ("killed", 1)):
        folder, mode = tmp_path / name, "new"
        for _ in range(kills):
            child = subprocess.Popen([sys.executable, "-c", code, str(folder), mode])
            until = time.monotonic() + 60
            while time.monotonic() < until and not (folder / "training.json").exists():
                time.sleep(0.02)
            time.sleep(0.4)
            assert json.loads((folder / "training.json").read_text())["best"] > 0
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            mode = "resume"
        subprocess.run([sys.executable, "-c", code, str(folder), mode], check=True, timeout=120)
        ends.append(torch.load(folder / "done.pt", weights_only=True)["weight"])
    assert torch.equal(ends[0], ends[1])


# ---- what a user's module, objective or settings must not do in silence


def test_a_module_that_attacks_cannot_see_through_or_that_returns_no_scores_is_refused() -> None:
    x, y = strong_and_weak_features(200)

    class Rounds(nn.Module):
        def forward(self, v: torch.Tensor) -> torch.Tensor:
            return (v * 8).round() / 8

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, v: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.linear(v)}

    for module, said in (
        (nn.Sequential(Rounds(), linear()), "No gradient of the module's scores reaches its input"),
        (nn.Sequential(linear(), nn.Softmax(1)), "returns probabilities"),
        (Parts(), "returns scores .*, not dict"),
        (nn.Linear(41, 1), r"two or more, not \[128, 1\]"),
        (linear().double(), "does not take rows"),
    ):
        with pytest.raises(uf.InputError, match=said):
            harden.fit(module, (x, y), "pgd", threat=BALL, recipe=Recipe(epochs=1))
    zero = linear()
    nn.init.zeros_(zero.weight)  # hides nothing: it has yet to learn
    assert len(harden.fit(zero, (x, y), "pgd", threat=BALL, recipe=Recipe(epochs=2)).lines) == 2


def test_an_objective_tells_of_what_it_was_made_and_another_is_no_resume(tmp_path: Path) -> None:
    told = [objectives.trades(attack, BALL, beta=2.0).told for attack in (STEP, uf.attacks.fgsm())]  # type: ignore[attr-defined]
    assert told[0] == told[1] and "beta=2.0" in told[0] and "fgsm()" in told[0] and "linf(0.1)" in told[0]
    changes = [objectives.planted([torch.full((41,), v)], BALL).told for v in (0.1, 0.1, 0.2)]  # type: ignore[attr-defined]
    assert changes[0] == changes[1] != changes[2]
    x, y = strong_and_weak_features(100)
    plan = Recipe(epochs=2, batch_size=50)

    def run(objective: core_fit.Objective, *, resume: bool) -> None:
        harden.fit(linear(), (x, y), objective, threat=BALL, recipe=plan, out=tmp_path / "t", resume=resume)

    run(objectives.adversarial(STEP, BALL), resume=False)
    run(objectives.adversarial(uf.attacks.fgsm(), uf.linf(0.1)), resume=True)
    for other in (objectives.noised(BALL), objectives.adversarial(STEP, uf.linf(0.2)), objectives.mixed(STEP, BALL)):
        with pytest.raises(uf.InputError, match="was begun with objective adversarial"):
            run(other, resume=True)
    with pytest.raises(uf.InputError, match="takes an attack such as"):
        objectives.trades("pgd(steps=3)", BALL)  # type: ignore[arg-type]
    with pytest.raises(uf.InputError, match="takes a threat such as"):
        objectives.noised("linf(0.1)")  # type: ignore[arg-type]


def test_settings_that_would_do_nothing_are_refused() -> None:
    x, y = strong_and_weak_features(100)
    with pytest.raises(uf.InputError, match="the newest: give patience with"):
        harden.fit(linear(), (x, y), "pgd", threat=BALL, choose="last", patience=2)
    for plan in (Recipe(epochs=1, batch_size=32, mix=0.01), Recipe(epochs=1, batch_size=1)):
        with pytest.raises(uf.InputError, match="is no extra row"):
            harden.fit(linear(), (x, y), "pgd", threat=BALL, recipe=plan, extra=(x + 0.001, y))
    with pytest.raises(uf.InputError, match="gradient of a gradient"):
        harden.fit(linear(), (x, y), "gradalign", threat=BALL, recipe=Recipe(epochs=1, compiled=True))


def test_free_training_begins_with_no_change_of_another_training() -> None:
    x, y = strong_and_weak_features(100)
    free, plan = objectives.Free(BALL), Recipe(epochs=2, batch_size=32, replays=2)
    first, second = (core_fit.fit(linear(), x, y, free, **vars(plan)) for _ in range(2))
    assert [line.loss for line in first] == [line.loss for line in second]


def test_inputs_of_other_bounds_and_inputs_with_gradients_are_trained_on() -> None:
    x, y = strong_and_weak_features(200)
    x = (2 * x - 1).requires_grad_()
    made = harden.fit(linear(), (x, y), "pgd", threat=uf.linf(0.2).within((-1.0, 1.0)), recipe=Recipe(epochs=1))
    assert len(made.lines) == 1 and x.grad is None


def test_a_module_that_refuses_is_judged_as_one() -> None:
    x, y = strong_and_weak_features(300)
    objective = harden.abstaining(lambda m, v, *_: v[: len(v) // 2].flip(1))
    plan, ball = Recipe(epochs=8, batch_size=32, lr=0.1), uf.linf(0.05)
    stood = []
    for reject in (None, "last"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = nn.Linear(41, 3)
        made = harden.fit(
            module, (x[:200], y[:200]), objective, threat=ball, recipe=plan, choose="last", reject=reject,
            validation=(x[200:], y[200:]),
        )  # type: ignore[arg-type]  # fmt: skip
        target = uf.Target(module, reject=reject)  # type: ignore[arg-type]
        again = uf.run(trainer.JUDGE, target, x[200:], y[200:], ball, seed=0).status
        stood.append(made.lines[-1].strong)
        assert stood[-1] == sum(s is Status.SURVIVED for s in again) / 100
    assert stood[1] > stood[0]
