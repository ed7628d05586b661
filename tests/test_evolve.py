"""Evolution: what it finds on targets with a known best image, its archive, and what a resumed run must equal."""

import builtins
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

import unfooled as uf
from unfooled.errors import InputError, MissingExtra, StorageError
from unfooled.fooling.evolve import Generation, log_odds, polynomial
from unfooled.fooling.gallery import share
from unfooled.testing import Linear, Spy

SHAPE = (1, 4, 4)


def linear(classes: int = 3, scale: float = 1.0) -> Linear:
    net = Linear.random(SHAPE, classes=classes, seed=1)
    with torch.no_grad():
        for p in net.parameters():
            p *= scale
    return net


def best_odds(net: Linear, k: int) -> float:
    """The largest log-odds that class k of a linear target has in the box; they are concave, so there is one top."""
    weight, bias = (p.detach().double().numpy() for p in net.parameters())
    rest = [j for j in range(len(bias)) if j != k]

    def lost(x: np.ndarray) -> float:
        z = weight @ x + bias
        return float(logsumexp(z[rest]) - z[k])

    return -float(minimize(lost, np.full(16, 0.5), bounds=[(0, 1)] * 16, method="L-BFGS-B").fun)


def same(a: uf.fooling.Evolution, b: uf.fooling.Evolution) -> None:
    for name in ("classes", "images", "log_odds", "found", "genomes", "curve", "sure", "control"):
        assert getattr(a, name).equal(getattr(b, name)), name
    assert a.forward == b.forward


def test_pixels_come_to_the_best_image_of_a_linear_target() -> None:
    net = linear()
    found = uf.fooling.evolve(net, SHAPE, generations=400, population=64)
    best = [best_odds(net, k) for k in range(3)]
    for k in range(3):
        assert best[k] - 0.5 < float(found.log_odds[k]) <= best[k] + 1e-4
        assert float(found.log_odds[k]) > float(found.curve[0, 2]) + 1  # far beyond what luck had
    scores = net(found.images).double()
    assert torch.allclose(found.confidence, scores.softmax(1).diagonal(), atol=1e-6)
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


class Disc(nn.Module):
    """Scores by how a picture looks beside a disc of half the width: class 1 is like it, class 0 unlike it."""

    def forward(self, x: Tensor) -> Tensor:
        y, across = ((2 * torch.arange(12) + 1) / 12 - 1 for _ in range(2))
        mask = ((y[:, None] ** 2 + across**2).sqrt() < 0.5).float()
        z = 20 * ((x[:, 0] * mask).sum((1, 2)) / mask.sum() - (x[:, 0] * (1 - mask)).sum((1, 2)) / (1 - mask).sum())
        return torch.stack([-z, z], 1)


def test_pattern_networks_come_to_a_disc_and_grow_on_the_way() -> None:
    found = uf.fooling.evolve(Disc(), (1, 12, 12), encoding="cppn", generations=60, population=64)
    assert float(found.log_odds[1]) > 30  # of 40 for the perfect disc; half-way is 0
    assert found.all_sure is not None
    picture = found.images[1, 0]
    assert float(picture[5:7, 5:7].mean()) > 0.8 and float(picture[0, 0]) < 0.2
    larger = found.drawn(36, 36)
    assert torch.allclose(larger[:, :, 1::3, 1::3], found.images, atol=1e-4)


def test_a_class_keeps_its_best_image_and_the_curve_never_falls() -> None:
    seen: list[Generation] = []
    found = uf.fooling.evolve(linear(5), SHAPE, generations=30, population=20, on_generation=seen.append)
    assert bool((found.curve.diff(dim=0) >= 0).all()) and bool((found.sure.diff() >= 0).all())
    assert [g.number for g in seen] == list(range(31)) and seen[-1].forward == found.forward
    assert seen[-1].median == pytest.approx(float(found.curve[-1, 1].sigmoid()))
    assert float(found.log_odds.min()) == float(found.curve[-1, 0])
    assert float(found.log_odds.max()) == float(found.curve[-1, 2])
    assert bool((found.found <= 30).all()) and bool((found.found > 0).any())


def test_every_image_competes_in_every_class() -> None:
    """In generation 0 each niche gets the best of all images, also classes that no image is taken for."""
    net = linear(6)
    first = uf.fooling.evolve(net, SHAPE, generations=0, population=50, seed=3)
    images = uf.fooling.Direct(SHAPE).first(50, torch.Generator().manual_seed(3)).view(-1, *SHAPE)
    odds = log_odds(net(images).detach())
    assert torch.allclose(first.log_odds, odds.max(0).values, atol=1e-5)
    assert first.images.equal(images[odds.argmax(0)])
    assert torch.allclose(first.control, net(images).softmax(1).amax(1).double(), atol=1e-6)


def test_rows_are_counted_and_only_scores_are_asked() -> None:
    spy = Spy(linear())
    target = uf.Target(spy, access=uf.Access.SCORES)
    found = uf.fooling.evolve(target, SHAPE, generations=7, population=11)
    assert found.forward == spy.forward_rows == 8 * 11 and spy.backward_rows == 0
    with pytest.raises(uf.AccessError):
        uf.fooling.evolve(uf.Target(linear(), access=uf.Access.LABEL), SHAPE, generations=1)


def test_images_keep_to_the_bounds_of_the_target() -> None:
    target = uf.Target(linear(), bounds=(-2.0, 3.0))
    found = uf.fooling.evolve(target, SHAPE, generations=50, population=32)
    assert float(found.images.min()) == -2 and float(found.images.max()) == 3


def test_classes_may_be_few_and_a_sure_search_stops() -> None:
    found = uf.fooling.evolve(linear(4, scale=3.0), SHAPE, classes=[2, 0], generations=500, population=32, until=0.99)
    assert found.classes.tolist() == [2, 0] and found.generations < 500
    assert float(found.confidence.min()) >= 0.99
    assert [row["class"] for row in found.rows()] == [2, 0] and found.rows()[0]["encoding"] == "direct"
    assert "of 2 classes" in found.sentence()


@pytest.mark.parametrize("encoding", ["direct", "cppn"])
def test_same_seed_same_bits_and_another_seed_another_image(encoding: str) -> None:
    one, two, other = (
        uf.fooling.evolve(linear(), SHAPE, encoding=encoding, generations=5, population=16, seed=s) for s in (0, 0, 1)
    )
    same(one, two)
    assert not one.images.equal(other.images)


@pytest.mark.parametrize("encoding", ["direct", "cppn"])
def test_a_resumed_search_ends_like_an_undisturbed_one(tmp_path: Path, encoding: str) -> None:
    ask = {"encoding": encoding, "population": 16, "seed": 4}
    whole = uf.fooling.evolve(linear(), SHAPE, generations=20, **ask)
    uf.fooling.evolve(linear(), SHAPE, generations=7, archive=tmp_path / "a.safetensors", **ask)
    again = uf.fooling.evolve(linear(), SHAPE, generations=20, archive=tmp_path / "a.safetensors", **ask)
    same(whole, again)
    done = uf.fooling.evolve(linear(), SHAPE, generations=20, archive=tmp_path / "a.safetensors", **ask)
    same(whole, done)


@pytest.mark.parametrize("where", [40, 57, 100])
def test_what_was_found_before_ctrl_c_is_kept(tmp_path: Path, where: int) -> None:
    """The target presses Ctrl-C in the middle of a generation, after some of its batches."""

    class Pressed(Linear):
        rows = 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += len(x)
            if self.rows > where:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    ask = {"population": 16, "seed": 4, "batch_size": 8}
    whole = uf.fooling.evolve(uf.Target(linear(), name="t"), SHAPE, generations=12, **ask)
    pressed = uf.Target(Pressed(linear().weight.detach(), linear().bias.detach()), name="t")
    path = tmp_path / "a.safetensors"
    part = uf.fooling.evolve(pressed, SHAPE, generations=12, archive=path, **ask)
    assert part.interrupted and part.generations == where // 16 - 1
    rest = uf.fooling.evolve(uf.Target(linear(), name="t"), SHAPE, generations=12, archive=path, **ask)
    assert not rest.interrupted
    same(whole, rest)


def test_ctrl_c_waits_until_a_generation_is_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ribs.archives import CategoricalArchive

    whole = uf.fooling.evolve(linear(), SHAPE, generations=10, population=16)
    added = CategoricalArchive.add_single
    calls = 0

    def pressing(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 8:
            signal.raise_signal(signal.SIGINT)
        return added(self, *args, **kwargs)

    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(CategoricalArchive, "add_single", pressing)
    part = uf.fooling.evolve(linear(), SHAPE, generations=10, population=16, archive=path)
    assert part.interrupted and 0 < part.generations < 10
    same(whole, uf.fooling.evolve(linear(), SHAPE, generations=10, population=16, archive=path))


def test_a_target_that_fails_leaves_the_archive(tmp_path: Path) -> None:
    class Tired(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 4:
                raise RuntimeError("tired")
            return super().forward(x)

    path = tmp_path / "a.safetensors"
    target = uf.Target(Tired(linear().weight.detach(), linear().bias.detach()), name="t")
    with pytest.raises(RuntimeError, match="tired"):
        uf.fooling.evolve(target, SHAPE, generations=12, population=16, archive=path)
    rest = uf.fooling.evolve(uf.Target(linear(), name="t"), SHAPE, generations=12, population=16, archive=path)
    same(rest, uf.fooling.evolve(linear(), SHAPE, generations=12, population=16))


def test_a_disk_that_takes_no_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no folder"):
        uf.fooling.evolve(linear(), SHAPE, generations=1, archive=tmp_path / "no" / "a.safetensors")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        uf.fooling.evolve(linear(), SHAPE, generations=1, population=8, archive=tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 5}, "seed: 0 there, 5 here"),
        ({"population": 9}, "population: 8 there, 9 here"),
        ({"encoding": "cppn"}, "encoding: Direct"),
        ({"encoding": uf.fooling.Direct(SHAPE, rate=0.2)}, "encoding: Direct"),
        ({"shape": (1, 2, 8)}, "shape"),
        ({"target": linear(scale=2.0)}, "target"),
        ({"classes": [0, 1]}, "classes"),
    ],
)
def test_an_archive_of_another_search_is_refused(tmp_path: Path, changed: dict, named: str) -> None:
    ask = {"target": linear(), "shape": SHAPE, "generations": 2, "population": 8, "archive": tmp_path / "a"}
    uf.fooling.evolve(**ask)
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(InputError, match=named) as refusal:
        uf.fooling.evolve(**(ask | changed))
    assert "\n" not in str(refusal.value) and (tmp_path / "a").read_bytes() == before


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", b"hello", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no archive"):
            uf.fooling.evolve(linear(), SHAPE, generations=1, archive=path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no archive"):
        uf.fooling.evolve(linear(), SHAPE, generations=1, archive=path)
    with pytest.raises(InputError, match="cannot be read"):
        uf.fooling.evolve(linear(), SHAPE, generations=1, archive=tmp_path)


def test_damaged_tensors_of_an_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    uf.fooling.evolve(linear(), SHAPE, generations=1, population=8, archive=path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    for broken in (
        {"niche": tensors["niche"] + 7},
        {"genome": tensors["genome"][:, :-1].clone()},
        {"log_odds": tensors["log_odds"][:1].clone()},
        {"luck": tensors["luck"][:10].clone()},
    ):
        save_file(tensors | broken, path, metadata=about)
        with pytest.raises(InputError, match="damaged"):
            uf.fooling.evolve(linear(), SHAPE, generations=2, population=8, archive=path)
    save_file(tensors, path, metadata={"evolution": json.dumps({"format": 99})})
    with pytest.raises(InputError, match="this version"):
        uf.fooling.evolve(linear(), SHAPE, generations=2, population=8, archive=path)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"classes": [3]}, r"There is no class 3; .* has the classes 0 to 2"),
        ({"classes": []}, "at least one"),
        ({"classes": [1, 1]}, "different numbers"),
        ({"encoding": "pixels"}, "direct and cppn"),
        ({"population": 0}, "at least 1"),
        ({"generations": -1}, "at least 0"),
        ({"until": 1.0}, "between 0 and 1"),
        ({"shape": ()}, "shape of one input|shape must be"),
        ({"shape": (16,), "encoding": "cppn"}, "draws pictures"),
        ({"encoding": uf.fooling.Direct((2, 8))}, "of shape"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        uf.fooling.evolve(**({"target": linear(), "shape": SHAPE, "generations": 1} | asked))
    assert "\n" not in str(refusal.value)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="no finite score"):
        uf.fooling.evolve(lambda x: torch.full((len(x), 3), math.nan), SHAPE, generations=1)


def test_a_missing_archive_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name.startswith("ribs"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(MissingExtra, match=r"unfooled\[evolve\]"):
        uf.fooling.evolve(linear(), SHAPE, generations=1)


def test_log_odds_tell_apart_what_a_softmax_cannot() -> None:
    scores = torch.tensor([[0.0, 40.0, 1.0], [0.0, 41.0, 1.0], [2.0, 2.0, -300.0]], dtype=torch.float32)
    odds = log_odds(scores)
    rest = math.log(1 + math.e)
    assert odds[:, 1].tolist() == pytest.approx([40 - rest, 41 - rest, 0.0], abs=1e-12)
    assert float(odds[2, 2]) == pytest.approx(-302 - math.log(2), abs=1e-9)
    assert scores.softmax(1)[0, 1] == scores.softmax(1)[1, 1] == 1  # what it would have seen
    probabilities = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    assert log_odds(probabilities)[0].tolist() == pytest.approx([math.log(p / (1 - p)) for p in (0.2, 0.3, 0.5)])
    assert log_odds(torch.tensor([[math.nan, 1.0]])).tolist() == [[-math.inf, -math.inf]]


def test_polynomial_steps_have_their_distribution() -> None:
    """Deb and Goyal 1996: the density is (n + 1)(1 - |s|)^n / 2, so P(step <= s) = (1 + s)^(n + 1) / 2 for s < 0."""
    luck = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    steps = polynomial(luck, 15.0)
    assert bool((steps.diff() >= 0).all()) and float(steps[0]) == -1 and float(steps[-1]) == 1
    assert torch.allclose(steps, -steps.flip(0), atol=1e-9)
    for s in (-0.5, -0.1, -0.01):
        assert float((steps <= s).double().mean()) == pytest.approx((1 + s) ** 16 / 2, abs=1e-4)


def test_the_share_of_pixels_that_move_is_the_rate_and_halves() -> None:
    code = uf.fooling.Direct((1, 40, 40), rate=0.1, halving=100)
    parents = code.first(50, torch.Generator().manual_seed(0))
    for generation, rate in ((0, 0.1), (99, 0.1), (100, 0.05), (250, 0.025)):
        children = code.mutated(parents, generation, torch.Generator().manual_seed(1))
        assert float((children != parents).double().mean()) == pytest.approx(rate, abs=0.005)
        assert float(children.min()) >= 0 and float(children.max()) <= 1


def test_diversity_of_runs_beside_random_images() -> None:
    runs = [uf.fooling.evolve(linear(), SHAPE, generations=3, population=8, seed=s) for s in range(3)]
    found = uf.fooling.diversity(runs)
    a, b, c = (run.images[1].flatten() for run in runs)
    wanted = sum(float((p - q).square().mean().sqrt()) for p, q in ((a, b), (a, c), (b, c))) / 3
    assert float(found.distance[1]) == pytest.approx(wanted, rel=1e-6)
    assert found.control == pytest.approx(math.sqrt(1 / 6), abs=0.02)  # E|u - v|^2 of two uniform numbers
    assert len(found.rows()) == 3 and "random images" in found.sentence()
    assert found.image().startswith(b"\x89PNG")
    other = uf.fooling.evolve(linear(scale=2.0), SHAPE, classes=[0, 2, 1], generations=1, population=8, seed=9)
    for wrong in (runs[:1], [runs[0], runs[0]], [runs[0], other]):
        with pytest.raises(InputError):
            uf.fooling.diversity(wrong)


def test_pictures_of_the_images_and_of_the_curves() -> None:
    runs = [uf.fooling.evolve(linear(), SHAPE, encoding=e, generations=3, population=8) for e in ("direct", "cppn")]
    shown = uf.fooling.gallery(*runs)
    assert [row["encoding"] for row in shown.rows()] == ["direct"] * 3 + ["cppn"] * 3
    assert shown.image() == uf.fooling.gallery(*runs).image() and shown.image().startswith(b"\x89PNG")
    assert len(uf.fooling.curves(*runs).rows()) == 8 and uf.fooling.curves(*runs).image("svg").startswith(b"<?xml")
    assert runs[0].image().startswith(b"\x89PNG")
    few = uf.fooling.gallery(*runs, most=2)
    for places, run in zip(few.shown(), runs, strict=True):
        assert places.tolist() == [int(run.log_odds.argmax())]
    flat = uf.fooling.evolve(linear(), (16,), generations=1, population=8)
    with pytest.raises(InputError, match="no pictures"):
        uf.fooling.gallery(flat)
    with pytest.raises(InputError):
        uf.fooling.curves()
    with pytest.raises(InputError, match="one size"):
        flat.drawn(8, 8)


@pytest.mark.parametrize(
    ("confidence", "said"),
    [(0.5, "50.0%"), (0.999, "99.9%"), (0.9999, "99.99%"), (0.99985, "99.98%"), (0.01234, "1.2%"), (0.99, "99.0%")],
)
def test_confidences_are_said_with_as_many_nines_as_they_have(confidence: float, said: str) -> None:
    assert share(math.log(confidence) - math.log1p(-confidence)) == said
    assert share(40.0) == ">99.9999%" and share(1e9) == ">99.9999%"


def test_the_shipped_target_is_fooled_by_both_encodings() -> None:
    target = uf.targets.resolve("digits-cnn")
    for encoding in ("direct", "cppn"):
        found = uf.fooling.evolve(target, (1, 8, 8), encoding=encoding, generations=60, population=128, until=0.9999)
        assert float(found.confidence.min()) >= 0.9999 and found.all_sure == found.generations
