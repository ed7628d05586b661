"""Detectors: areas under curves with closed forms, guards that refuse as they say, and attacks that know them."""

import json
import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

import unfooled as uf
from unfooled import stats
from unfooled.attacks import parse
from unfooled.cli._app import call
from unfooled.core.ask import Asker
from unfooled.harden import Median, Quantised, detect


class Linear(nn.Module):
    """Two classes: 0 and w . x."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


class Reading(nn.Module):
    """A detector that is a formula."""

    def __init__(self, formula: object) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)).eval()


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    return uf.targets.resolve("digits-cnn").module.eval().requires_grad_(False)


# ---- areas


@pytest.mark.parametrize("apart", [0.0, 0.5, 2.0])
def test_the_area_is_that_of_two_normal_distributions(apart: float) -> None:
    grid = [NormalDist().inv_cdf((i + 0.5) / 4000) for i in range(4000)]
    want = NormalDist().cdf(apart / math.sqrt(2))
    assert stats.auroc([v + apart for v in grid], grid) == pytest.approx(want, abs=1e-4)
    false, true = stats.roc([v + apart for v in grid], grid)
    under = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(false, false[1:], true, true[1:], strict=False))
    assert under == pytest.approx(want, abs=1e-4)


def test_the_area_counts_pairs_and_a_tie_as_half() -> None:
    positive, negative = [1.0, 2.0, 2.0, 5.0], [0.0, 2.0, 3.0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert stats.auroc(positive, negative) == pytest.approx(sum(pairs) / 12)
    assert stats.auroc([0.0] * 5, [0.0] * 7) == 0.5 and stats.auroc([1.0], [0.0]) == 1.0
    assert math.isnan(stats.auroc([], [1.0]))
    assert stats.auroc_interval(1.0, 100, 9) == pytest.approx(stats.wilson(9, 9))
    assert stats.auroc_interval(0.5, 0, 9) == (0.0, 1.0)


def test_the_interval_of_an_area_covers_it() -> None:
    luck, want, hits = torch.Generator().manual_seed(0), NormalDist().cdf(1 / math.sqrt(2)), 0
    for _ in range(300):
        a, b = torch.randn(40, generator=luck) + 1, torch.randn(60, generator=luck)
        low, high = stats.auroc_interval(stats.auroc(a.tolist(), b.tolist()), 40, 60)
        hits += low <= want <= high
    assert hits >= 0.95 * 300


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_a_threshold_is_the_lowest_that_keeps_the_rate(share: float) -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    line = stats.threshold(values, share)
    above = sorted(v for v in values if v > line)
    assert len(above) / 200 <= share < (len(above) + 1) / 200
    below = max(v for v in values if v <= line)
    assert line == pytest.approx((below + above[0]) / 2)


def test_on_a_linear_target_the_detectors_area_is_the_formulas() -> None:
    torch.manual_seed(0)
    n, d, eps = 4000, 20, 0.1
    w = torch.randn(d)
    x = torch.randn(n, d)
    x[:, 0] = 0  # where a change cannot hide
    ball = uf.Ball(uf.norms.NORMS["linf"], eps, (-50.0, 50.0))
    target = uf.Target(Linear(w), bounds=(-50.0, 50.0))
    y = torch.ones(n, dtype=torch.int64)
    x_adv = detect.finished(parse("fgsm()"), target, x, y, ball)
    torch.testing.assert_close(x_adv, x - eps * w.sign())
    want = NormalDist().cdf(eps * float(w.abs().sum()) / float(w[1:].norm()) / math.sqrt(2))
    reads = Reading(lambda z: -(z @ w))
    blind = Reading(lambda z: z[:, 1] * 0)
    perfect = Reading(lambda z: z[:, 0].abs())
    for seen, area in ((reads, want), (blind, 0.5), (perfect, 1.0)):
        guard = uf.Target(detect.Watched(target.module, seen), bounds=(-50.0, 50.0), reject="last")
        above = [detect.suspicion(guard, z).tolist() for z in (x_adv, x)]
        assert stats.auroc(*above) == pytest.approx(area, abs=0.02 if area == want else 1e-12)


# ---- guards


def test_a_guard_reads_the_input_the_scores_or_a_layer_in_one_pass(digits: nn.Module) -> None:
    x = uf.load_data("digits").x[:20]
    torch.manual_seed(0)
    on_input, on_layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), nn.Linear(64, 1)
    joint = detect.Watched(digits, on_input)(x)
    torch.testing.assert_close(joint[:, -1], digits(x).amax(1) + on_input(x)[:, 0])
    passes = []
    hook = digits.register_forward_hook(lambda *a: passes.append(1))
    out = detect.Watched(digits, on_layer, "6", 0.25)(x)
    hook.remove()
    assert len(passes) == 1 and not digits[6]._forward_hooks
    torch.testing.assert_close(out[:, :-1], digits(x))
    torch.testing.assert_close(out[:, -1], digits(x).amax(1) + on_layer(digits[:7](x))[:, 0] - 0.25)
    with pytest.raises(uf.InputError, match="no layer 'seven'"):
        detect.Watched(digits, on_layer, "seven")


def test_a_calibrated_guard_refuses_at_the_rate(digits: nn.Module) -> None:
    x = uf.load_data("digits", split="train").x
    guard = detect.calibrated(detect.Watched(digits, detect.Unsure(), "scores"), x[:400], fpr=0.05)
    refused = guard(x[:400]).argmax(1) == 10
    assert 0.0475 <= float(refused.double().mean()) <= 0.05
    torch.testing.assert_close(detect.suspicion(guard, x[:400]) > 0, refused)
    with pytest.raises(uf.InputError, match="share between 0 and 1"):
        detect.calibrated(guard, x, fpr=0)
    with pytest.raises(uf.InputError, match="never refuses"):
        detect.suspicion(uf.Target(digits), x)


@pytest.mark.parametrize("size", [1e5, 1.0, 0.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_guard_refuses_where_its_detector_is_above_the_threshold_however_little(
    kind: torch.dtype, size: float
) -> None:
    """Scores of 100,000 have no room in float32 for suspicions of 0.00006; the answer is the detector's even so."""
    x = torch.rand(400, 4, generator=torch.Generator().manual_seed(0), dtype=kind)
    x[100:130, 3] = 0.5  # rows that are equally suspicious
    module = nn.Linear(4, 3).to(kind)
    with torch.no_grad():
        module.weight.mul_(size)
        module.bias.mul_(size)
    seen = Reading(lambda z: 2**-14 * z[:, 3])
    guard = detect.calibrated(detect.Watched(module, seen), x, fpr=0.05)
    refused = guard(x).argmax(1) == 3
    assert torch.equal(refused, seen(x) > guard.threshold) and int(refused.sum()) == 20
    assert torch.equal(detect.suspicion(guard, x) > 0, refused)
    guard.threshold.copy_(seen(x)[100])  # at the threshold is not above it
    assert not bool((guard(x).argmax(1) == 3)[100:130].any())
    guard.threshold.copy_(torch.nextafter(guard.threshold, torch.tensor(0.0)))
    refused = guard(x).argmax(1) == 3
    assert bool(refused[100:130].all()) and bool((detect.suspicion(guard, x) > 0)[100:130].all())


def test_what_a_guard_refuses_by_a_hair_still_has_a_gradient() -> None:
    module, seen = nn.Linear(4, 3), Reading(lambda z: 1e-9 * z[:, 3])
    leaf = torch.rand(5, 4).requires_grad_(True)
    out = detect.Watched(module, seen)(leaf)
    assert bool((out.argmax(1) == 3).all())
    (grad,) = torch.autograd.grad((out[:, 3] - out[:, :3].amax(1)).sum(), leaf)
    torch.testing.assert_close(grad, torch.tensor([0.0, 0, 0, 1e-9]).expand(5, 4), rtol=1e-3, atol=1e-12)


def test_untrained_detectors_are_their_formulas(digits: nn.Module) -> None:
    x, y = uf.load_data("digits").x[:50], uf.load_data("digits").y[:50]
    z = digits(x).double()
    p = z.softmax(1).amax(1)
    torch.testing.assert_close(detect.Unsure()(z), ((1 - p) / p).log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(detect.Energy()(z), -z.exp().sum(1).log())
    features = detect.read_by(digits, x, "5")[1]
    far = detect.Mahalanobis(features, y)(features)
    f = features.double()
    centres = torch.stack([f[y == k].mean(0) for k in range(10)])
    apart = f - centres[y]
    cov = apart.T @ apart / 50
    cov += 1e-3 * cov.diagonal().mean() * torch.eye(64).double()
    want = cdist(f, centres, "mahalanobis", VI=torch.linalg.inv(cov)).min(1) ** 2
    torch.testing.assert_close(far.double(), torch.from_numpy(want), rtol=1e-2, atol=1e-2)
    squeezed = detect.Squeezed(digits, [lambda m: Quantised(m, 1), lambda m: Median(m, 3)])
    q = digits(x).softmax(1)
    apart = [(m(x).softmax(1) - q).abs().sum(1) for m in (Quantised(digits, 1), Median(digits, 3))]
    torch.testing.assert_close(squeezed(x), torch.maximum(*apart))
    with pytest.raises(uf.InputError, match="at least one squeezer"):
        detect.Squeezed(digits, [])
    with pytest.raises(uf.InputError, match="at least two rows"):
        detect.Mahalanobis(features[:1], y[:1])


# ---- training


def test_a_detector_learns_the_attack_it_is_shown_and_leaves_the_module(digits: nn.Module) -> None:
    data = uf.load_data("digits", split="train")
    before = [p.clone() for p in digits.parameters()]
    made = [
        detect.detector(
            digits, data.x[:600], data.y[:600], "fgsm()", uf.linf(0.1), epochs=3, batch_size=32, lr=3e-3, seed=4
        )
        for _ in range(2)
    ]
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(before, digits.parameters(), strict=True))
    guard = detect.calibrated(detect.Watched(digits, made[0]), data.x[600:])
    test = uf.load_data("digits")
    x, y = test.x[:200], test.y[:200]
    x_adv = detect.finished(parse("fgsm()"), uf.Target(digits), x, y, uf.linf(0.1))
    clean, found = (detect.suspicion(guard, z).tolist() for z in (x, x_adv))
    assert stats.auroc(found, clean) > 0.9
    assert made[0].training is False


def test_a_detector_reads_layers_and_takes_turns_between_targets(digits: nn.Module) -> None:
    data = uf.load_data("digits", split="train")
    first = detect.Watched(digits, detect.Unsure(), "scores")
    sent = [uf.Target(digits), uf.Target(first, reject="last")]
    made = detect.detector(
        digits, data.x[:96], data.y[:96], "pgd(steps=2)", uf.linf(0.1), on="2", against=sent, epochs=1, batch_size=33
    )
    assert made(detect.read_by(digits, data.x[:3], "2")[1]).shape == (3, 1)
    assert sent[0].sent[0] == sent[1].sent[0] + 4  # 17 + 17 + 15 rows of the first, 16 + 16 + 15 of the second, twice


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threat": uf.linf()}, "finite eps"),
        ({"attack": "pdg()"}, "There is no attack"),
        ({"epochs": 0}, "must be positive"),
    ],
)
def test_training_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    given = {"attack": "fgsm()", "threat": uf.linf(0.1), "epochs": 1} | change
    with pytest.raises(uf.InputError, match=said):
        detect.detector(small(), torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), **given)


# ---- attacks that know


def band(width: float, scale: float) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear target that refuses where it is not sure: crossing costs the margin and the band's width."""
    torch.manual_seed(3)
    w = torch.randn(12)
    x = 0.5 + 0.1 * torch.randn(80, 12)
    module = Linear(w, -0.5 * float(w.sum()))
    z = module(x)[:, 1].detach()
    guard = detect.Watched(module, Reading(lambda s: scale * (width - (s[:, 1] - s[:, 0]).abs())), "scores")
    return guard, x, (z > 0).long(), (z.abs() + width) / w.abs().sum().detach()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize(
    "attack",
    [
        "pgd(steps=40)",
        "pgd(steps=40, loss='margin', sense='selective')",
        "pgd(steps=40, loss='margin', sense='orthogonal')",  # both gradients lie along one line here
    ],
)
def test_an_attack_on_both_breaks_what_theory_says(attack: str, scale: float) -> None:
    guard, x, y, needs = band(0.2, scale)
    target = uf.Target(guard, bounds=(-5.0, 5.0), reject="last")
    accepted = detect.suspicion(target, x) <= 0
    eps = float(needs[accepted].median())
    found = uf.run(attack, target, x, y, uf.linf(eps))
    assert not found.success[needs > 1.01 * eps].any() and not found.success[~accepted].any()
    assert found.success[accepted & (needs < 0.97 * eps)].all()
    assert int((accepted & (needs < 0.97 * eps)).sum()) > 10 and int((accepted & (needs > 1.01 * eps)).sum()) > 10


def faint() -> tuple[uf.Target, Tensor, Tensor]:
    """Wrong needs the last ten values down; accepted needs the first ten up, which the answer does not want."""
    module = Linear(torch.cat([torch.ones(10), 4 * torch.ones(10)]), -22.0)
    refusal = Reading(lambda x: 1e-3 * (0.55 - x[:, :10].mean(1)))
    return uf.Target(detect.Watched(module, refusal), reject="last"), torch.full((6, 20), 0.56), torch.ones(6).long()


@pytest.mark.parametrize(("sense", "share"), [("exact", 0), ("selective", 1), ("orthogonal", 1)])
def test_a_faint_refusal_against_the_grain_falls_to_one_gradient_at_a_time(sense: str, share: float) -> None:
    target, x, y = faint()
    found = uf.run(f"pgd(steps=60, loss='margin', sense={sense!r})", target, x, y, uf.linf(0.3))
    assert float(found.success.double().mean()) == share


@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_the_evaluation_sees_a_faint_refusal(suite: str) -> None:
    target, x, y = faint()
    assert uf.evaluate(target, x, y, threat=uf.linf(0.3), suite=suite).robust_accuracy == 0


def test_senses_for_refusals_are_the_exact_gradient_elsewhere(digits: nn.Module) -> None:
    data = uf.load_data("digits", limit=40)
    found = [
        uf.run(f"pgd(steps=10, sense={sense!r})", uf.Target(digits), data.x, data.y, uf.linf(0.1))
        for sense in ("exact", "selective", "orthogonal")
    ]
    assert [int(f.success.sum()) for f in found][1:] == pytest.approx([int(found[0].success.sum())] * 2, abs=4)


def test_a_judged_detector_says_what_it_sees_and_what_is_left(digits: nn.Module) -> None:
    data, test = uf.load_data("digits", split="train"), uf.load_data("digits", limit=80)
    guard = detect.calibrated(detect.Watched(digits, detect.Unsure(), "scores"), data.x[:400])
    found = detect.judged(
        guard, digits, test.x, test.y, uf.linf(0.1),
        ignoring=["fgsm()", "deepfool()"],
        adaptive=["pgd(steps=20)", "pgd(steps=30, loss='margin', sense='selective')"],
    )  # fmt: skip
    assert found.n == 80 and len(found.rows()) == 4
    assert torch.equal(found.kept, (guard(test.x).argmax(1) == test.y))
    assert not (found.robust & ~found.ignored).any() and not (found.ignored & ~found.kept).any()
    deepfool = found.seen[1]
    assert deepfool.auroc > 0.9  # a smallest change ends where the target is least sure
    x_adv = detect.finished(parse("deepfool()"), uf.Target(digits), test.x, test.y, uf.linf(0.1))
    inside = (x_adv - test.x).abs().amax((1, 2, 3)) <= 0.1 + 1e-6
    wrong = Asker(digits).labels(x_adv) != test.y
    assert torch.equal(deepfool.fooled, found.right & wrong & inside)
    assert float(found.robust.double().mean()) < float(found.ignored.double().mean())
    told = found.sentence()
    assert f"{float(found.robust.double().mean()):.1%}" in told and "n = 80" in told and "without a detector" in told
    assert found.image("png")[:4] == b"\x89PNG"
    with pytest.raises(uf.InputError, match="at least one"):
        detect.judged(guard, digits, test.x, test.y, uf.linf(0.1), adaptive=[])


def test_a_vote_falls_where_its_median_member_does() -> None:
    torch.manual_seed(5)
    w = torch.randn(12)
    x = 0.5 + 0.1 * torch.randn(80, 12)
    members = [Linear(w, b - 0.5 * float(w.sum())) for b in (-0.3, 0.05, 0.4)]
    z = members[1](x)[:, 1].detach()
    needs = z.abs() / w.abs().sum()
    vote = uf.ensemble([uf.Target(m, bounds=(-5.0, 5.0)) for m in members], "vote")
    y, eps = (z > 0).long(), float(needs.median())
    found = uf.run("pgd(steps=40)", vote, x, y, uf.linf(eps)).success
    assert not found[needs > 1.01 * eps].any() and found[needs < 0.97 * eps].all()


def test_the_command_line_evaluates_an_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import unfooled as uf\n\n"
        "def voters():\n"
        "    return uf.ensemble([uf.targets.resolve(n) for n in ('digits-cnn', 'digits-cnn-robust')], 'vote')\n"
    )
    words = ["evaluate", f"{tmp_path / 'mine.py'}:voters", "digits", "--threat", "linf(0.1)", "--limit", "12"]
    assert call([*words, "--no-curve", "--json", "--out", str(tmp_path / "run")]) in (0, 3)
    told = json.loads(capsys.readouterr().out)
    assert told["n"] == 12 and told["target"].startswith("vote of")


def test_the_command_line_evaluates_a_guarded_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import unfooled as uf\n"
        "from unfooled.harden import detect\n\n"
        "def guarded():\n"
        "    module = uf.targets.resolve('digits-cnn').module\n"
        "    guard = detect.Watched(module, detect.Unsure(), 'scores')\n"
        "    return detect.calibrated(guard, uf.load_data('digits', split='train').x[:400])\n"
    )
    words = ["evaluate", f"{tmp_path / 'mine.py'}:guarded", "digits", "--threat", "linf(0.1)", "--limit", "40"]
    assert call([*words, "--reject", "last", "--no-curve", "--json", "--out", str(tmp_path / "run")]) in (0, 3)
    told = json.loads(capsys.readouterr().out)
    assert told["rejection"]["clean_rejected"] > 0
    assert told["robust_accuracy"] < told["clean_accuracy"]
