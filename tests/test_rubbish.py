"""Noise, transfer, blur and removal: against closed forms on linear targets and targets that look at one place."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy
import torch
from scipy import stats
from torch import Tensor, nn

from unfooled.core.explanation import Explanation
from unfooled.core.target import Target
from unfooled.errors import InputError
from unfooled.fooling.measures import ablated, blurred, carried_over, low_pass
from unfooled.fooling.rubbish import aimed, random_images, rubbish
from unfooled.testing import Linear

SHAPE = (1, 4, 4)


def linear(gap: float, size: float) -> Linear:
    """Two classes whose margin is N(gap, size^2) on N(0, 1) inputs."""
    direction = np.random.default_rng(1).standard_normal(16)
    direction *= size / np.linalg.norm(direction)
    weight = torch.from_numpy(np.stack([-direction / 2, direction / 2]))
    return Linear(weight, torch.tensor([-gap / 2, gap / 2], dtype=torch.float64))


@pytest.mark.parametrize(("gap", "size", "threshold"), [(0.0, 2.0, 0.9), (1.0, 0.5, 0.7), (-2.0, 3.0, 0.5)])
def test_the_rate_on_a_linear_target_is_that_of_its_normal_margin(gap, size, threshold):
    got = rubbish(linear(gap, size), SHAPE, n=40_000, threshold=threshold, seed=3)
    edge = math.log(threshold / (1 - threshold))
    margin = stats.norm(gap, size)
    rate = margin.sf(edge) + margin.cdf(-edge)
    assert got.rate == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 40_000) + 1e-9)
    grid = np.linspace(gap - 12 * size, gap + 12 * size, 400_001)
    weight = margin.pdf(grid) * (np.abs(grid) > edge)
    sure = np.sum(weight / (1 + np.exp(-np.abs(grid)))) / np.sum(weight)
    assert got.sure == pytest.approx(sure, abs=0.005)
    ones = margin.sf(edge) / rate
    assert got.rows()[2]["errors"] / got.rows()[0]["errors"] == pytest.approx(ones, abs=0.02)
    low, high = got.rows()[0]["interval"]
    assert low < got.rate < high or got.rate == 1


def test_independent_heads_are_right_when_no_class_is_sure():
    weight, bias = torch.eye(3, 16, dtype=torch.float64) * 2, torch.tensor([-1.0, -2.0, 0.5], dtype=torch.float64)
    quiet = np.prod(stats.norm.cdf(-bias.numpy() / 2))  # no class above 0.5
    got = rubbish(Linear(weight, bias), SHAPE, n=40_000, head="sigmoid")
    assert got.rate == pytest.approx(1 - quiet, abs=0.01)
    softmax = rubbish(Linear(weight, bias), SHAPE, n=40_000)
    assert softmax.rate != pytest.approx(got.rate, abs=0.05)
    given = rubbish(lambda x: Linear(weight, bias)(x.double()).sigmoid(), SHAPE, n=40_000, head="given")
    assert given.rate == pytest.approx(got.rate, abs=1e-3) and given.sure == pytest.approx(got.sure, abs=1e-3)


class Bell(nn.Module):
    """One independent classifier a class, p = exp(-|x - centre|^2 / width^2), as log-odds."""

    def __init__(self, centres: Tensor, width: float) -> None:
        super().__init__()
        self.centres, self.width = nn.Parameter(centres), width

    def forward(self, x: Tensor) -> Tensor:
        logs = -((x.flatten(1)[:, None] - self.centres) ** 2).sum(2) / self.width**2
        return logs - torch.log(-torch.expm1(logs.clamp(max=-1e-6)))


def test_a_target_that_falls_off_with_distance_is_sure_of_no_noise_but_of_its_own_images():
    centres = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    near = centres.view(3, *SHAPE) + 0.01
    got = rubbish(Bell(centres, 1.0), SHAPE, n=2000, head="sigmoid", natural=near)
    assert got.rate == 0 and math.isnan(got.sure) and got.rows()[0]["confidence"] is None
    assert got.natural is not None and bool((got.natural > 0.99).all())
    assert "0.0%" in got.sentence() and "100.0%" in got.sentence()


def test_noise_is_not_clipped_unless_it_is_uniform_within_the_bounds():
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x), 2)

    rubbish(spy, (3, 8, 8), n=500)
    normal = torch.cat(seen).double()
    assert normal.shape == (500, 3, 8, 8)
    assert float(normal.mean()) == pytest.approx(0, abs=0.02) and float(normal.std()) == pytest.approx(1, abs=0.02)
    seen.clear()
    random_images(Target(spy, bounds=(-1.0, 3.0)), (3, 8, 8), n=500)
    uniform = torch.cat(seen).double()
    assert float(uniform.min()) >= -1 and float(uniform.max()) <= 3
    assert float(uniform.mean()) == pytest.approx(1, abs=0.03) and float(uniform.var()) == pytest.approx(16 / 12, 0.02)


def test_a_constant_target_is_sure_of_everything_or_of_nothing():
    scores = torch.tensor([0.0, 3.0])
    got = rubbish(lambda x: scores.expand(len(x), 2), SHAPE, n=50)
    assert got.rate == 1 and got.sure == pytest.approx(1 / (1 + math.exp(-3)), 1e-6)
    assert [row["errors"] for row in got.rows()] == [50, 0, 50]
    flat = random_images(lambda x: torch.zeros(len(x), 4), SHAPE, n=50, compare={"natural": torch.rand(3, *SHAPE)})
    assert [row["median"] for row in flat.rows()] == [0.25, 0.25] and flat.rows()[1]["n"] == 3


def test_random_images_are_set_beside_others():
    target = linear(-6.0, 8.0)
    side = torch.sign(target.weight[1] - target.weight[0]).view(SHAPE)
    got = random_images(target, SHAPE, n=400, compare={"fooling": (side > 0).double()[None]})
    random, fooling = got.rows()
    assert fooling["median"] > 0.99 > 0.5 <= random["median"] and fooling["n"] == 1
    assert "fooling images" in got.sentence()


def test_one_step_moves_the_margin_of_a_linear_target_by_eps_times_its_l1_norm():
    target, eps = linear(-3.0, 2.0), 0.4
    reach = eps * float((target.weight[1] - target.weight[0]).detach().abs().sum())
    got = aimed(target, SHAPE, eps=eps, n=20_000, threshold=0.6)
    edge = math.log(0.6 / 0.4)
    rows = {row["class"]: row for row in got.rows()}
    margin = stats.norm(-3, 2)
    assert rows["1"]["share"] == pytest.approx(margin.sf(edge - reach), abs=0.01)
    assert rows["0"]["share"] == pytest.approx(margin.cdf(-edge + reach), abs=0.01)
    assert rows["1"]["without the step"] == pytest.approx(margin.sf(edge), abs=0.01)
    assert rows["all"]["share"] == pytest.approx((rows["0"]["share"] + rows["1"]["share"]) / 2)


@pytest.mark.parametrize("head", ["sigmoid", "given"])
def test_one_step_towards_an_independent_class_leaves_the_others_out_of_it(head):
    target = Linear(torch.ones(2, 16, dtype=torch.float64), torch.tensor([-4.0, 0.0], dtype=torch.float64))
    shown = target if head == "sigmoid" else lambda x: target(x).sigmoid()
    got = aimed(shown, SHAPE, eps=0.2, n=20_000, head=head).rows()
    first = stats.norm(-4 + 0.2 * 16, 4).sf(0)  # a softmax would have no gradient: the classes have the same weights
    assert got[1]["share"] == pytest.approx(first, abs=0.015)
    assert got[2]["share"] == pytest.approx(stats.norm(0.2 * 16, 4).sf(0), abs=0.015)


# ---- transfer, blur, removal


def look_at(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A target whose margin for class 1 is the weighted mean of an image minus a half, times 20."""

    def module(x: Tensor) -> Tensor:
        margin = 20 * ((x * weight).flatten(1).sum(1) / weight.sum() - 0.5)
        return torch.stack([-margin / 2, margin / 2], 1)

    return module


def test_images_carry_over_to_a_target_that_looks_at_the_same_pixels_alone():
    left, right = torch.zeros(SHAPE), torch.zeros(SHAPE)
    left[..., :2], right[..., 2:] = 1, 1
    images = torch.zeros(20, *SHAPE)
    images[..., :2] = 1
    classes = torch.ones(20, dtype=torch.int64)
    got = carried_over(images, classes, {"same": look_at(left), "other": look_at(right)}, draws=200)
    same, other = got.rows()
    assert same["called the class"] == 1 and same["mean confidence"] == pytest.approx(1 / (1 + math.exp(-10)), abs=1e-5)
    assert other["called the class"] == 0 and other["median confidence"] < 1e-4
    # eight of sixteen pixels are 1; the margin is their number on the left minus 4, class 0 where it is not positive
    more = stats.hypergeom(16, 8, 8).sf(4)
    assert same["pixels shuffled"] == pytest.approx(more, abs=0.03) == other["pixels shuffled"]
    assert got.called.shape == (2, 20) and got.shuffled.shape == (2, 200, 20) and "same 100%" in got.sentence()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_the_blur_is_scipys_away_from_the_edges_and_keeps_what_is_constant(sigma):
    x = torch.zeros(1, 2, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = x[0, 1, 18, 23] = 1
    wanted = scipy.ndimage.gaussian_filter(x[0].numpy(), sigma=(0, sigma, sigma), truncate=12)
    got = low_pass(x, sigma)[0].numpy()
    np.testing.assert_allclose(got[:, 8:-8, 8:-8], wanted[:, 8:-8, 8:-8], atol=2e-4)
    assert got.sum() == pytest.approx(2, abs=1e-6)
    flat = torch.full((2, 1, 5, 7), 0.3)
    assert torch.allclose(low_pass(flat, sigma), flat)


def test_a_checkerboard_fools_until_it_is_blurred_and_a_natural_plane_stays():
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2

    def finely(x: Tensor) -> Tensor:  # class 1: neighbouring pixels differ
        rough = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([torch.zeros_like(rough), 40 * (rough - 0.5)], 1)

    images = checks.float().expand(6, 1, 8, 8)
    plane = torch.full((4, 1, 8, 8), 0.8)
    got = blurred(finely, images, torch.ones(6, dtype=torch.int64), (0, 2), natural=(plane, torch.zeros(4).long()))
    sharp, soft = got.rows()
    assert (sharp["called the class"], soft["called the class"]) == (1, 0)
    assert sharp["mean confidence"] > 0.99 and soft["mean confidence"] < 0.01
    assert sharp["natural images"] == soft["natural images"] == 1 and soft["pixels shuffled"] == 0
    assert got.called.shape == got.confidence.shape == (2, 6)


def test_what_hangs_on_the_centre_is_lost_with_it_and_with_nothing_else():
    weight = torch.zeros(1, 12, 12)
    weight[:, 4:8, 4:8] = 1  # the middle of a 3 x 3 grid
    images = torch.ones(5, 1, 12, 12)
    natural = torch.ones(2, 1, 12, 12), torch.ones(2, dtype=torch.int64)
    got = ablated(look_at(weight), images, torch.ones(5, dtype=torch.int64), grid=3, natural=natural)
    sure = 1 / (1 + math.exp(-10))
    assert got.greyed["fooling"].shape == (5, 3, 3)
    wanted = torch.full((3, 3), sure)
    wanted[1, 1] = 0.5
    assert torch.allclose(got.greyed["fooling"], wanted.expand(5, 3, 3), atol=1e-6)
    assert torch.allclose(got.centre["fooling"], torch.tensor(0.5)) and torch.allclose(
        got.edge["natural"], torch.tensor(sure)
    )
    assert torch.allclose(got.shuffled["fooling"], torch.tensor(sure)), "pixels in another order are the same mean"
    rows = {(row["images"], row["removed"]): row for row in got.rows()}
    assert rows["fooling", "one patch greyed, mean"]["after"] == pytest.approx((8 * sure + 0.5) / 9, abs=1e-6)
    assert rows["fooling", "one patch greyed, worst"]["after"] == pytest.approx(0.5, abs=1e-6)


def test_shuffling_a_patch_moves_its_pixels_and_no_others():
    weight = torch.zeros(1, 6, 6)
    weight[0, 0, 0] = 1  # one pixel of the first patch
    images = torch.zeros(400, 1, 6, 6)
    images[:, :, 0, 0] = 1
    got = ablated(look_at(weight), images, torch.ones(400, dtype=torch.int64), grid=3)
    first = got.shuffled["fooling"][:, 0, 0]
    assert float((first > 0.5).double().mean()) == pytest.approx(1 / 4, abs=0.08), "one of four places"
    assert bool((got.shuffled["fooling"].flatten(1)[:, 1:] > 0.99).all())


# ---- all of them


X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1, 1, 0])
SOME = Linear.random(SHAPE, classes=3, seed=2)
ALL: dict[str, Callable[[int], Explanation]] = {
    "rubbish": lambda seed: rubbish(SOME, SHAPE, n=300, natural=X, seed=seed),
    "random_images": lambda seed: random_images(SOME, SHAPE, n=300, compare={"fooling": X}, seed=seed),
    "aimed": lambda seed: aimed(SOME, SHAPE, eps=0.1, n=100, seed=seed),
    "carried_over": lambda seed: carried_over(X, Y, {"a": SOME, "b": linear(0.0, 1.0)}, seed=seed),
    "blurred": lambda seed: blurred(SOME, X, Y, (0, 1), natural=(X, Y), seed=seed),
    "ablated": lambda seed: ablated(SOME, X, Y, grid=3, natural=(X, Y), draws=2, seed=seed),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("same_luck")
def test_the_same_seed_gives_the_same_bits_and_a_figure(name):
    one, again, other = ALL[name](1), ALL[name](1), ALL[name](2)
    assert one.rows() == again.rows() != other.rows()
    assert len({tuple(row) for row in one.rows()}) == 1, "every row has the same keys"
    assert one.sentence().endswith(".") and "nan" not in one.sentence()
    pytest.importorskip("matplotlib")
    assert one.image("png", dpi=40).startswith(b"\x89PNG") and one.image("svg") == again.image("svg")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rubbish(SOME, SHAPE, n=0), "n must be at least 1"),
        (lambda: rubbish(SOME, (), n=5), "shape must be that of one input"),
        (lambda: rubbish(SOME, SHAPE, n=5, threshold=1.0), "threshold must lie between"),
        (lambda: rubbish(SOME, SHAPE, n=5, noise="norml"), "use 'normal' or 'uniform'"),
        (lambda: rubbish(SOME, SHAPE, n=5, head="softmx"), "Did you mean 'softmax'"),
        (lambda: rubbish(SOME, SHAPE, n=5, head="given"), "needs scores in"),
        (lambda: rubbish(lambda x: torch.full((len(x), 2), math.nan), SHAPE, n=5), "not finite"),
        (lambda: random_images(SOME, SHAPE, n=5, compare={"fooling": torch.rand(2, 1, 8, 8)}), "fooling images have"),
        (lambda: aimed(SOME, SHAPE, eps=0.0), "eps must be a positive"),
        (lambda: carried_over(X, Y, {}), "targets is empty"),
        (lambda: carried_over(X, Y[:3], {"a": SOME}), "one for each image"),
        (lambda: carried_over(X, Y + 7, {"a": SOME}), "knows 3 classes"),
        (lambda: carried_over(X, Y, {"a": SOME}, draws=0), "draws must be"),
        (lambda: blurred(SOME, X, Y, (-1,)), "sigmas must be"),
        (lambda: blurred(SOME, X, Y.float()), "must be integers"),
        (lambda: blurred(SOME, X[:0], Y[:0]), "no images"),
        (lambda: ablated(SOME, X, Y, grid=5), "grid must lie between 3 and the images' 4"),
        (lambda: ablated(SOME, X.flatten(1), Y), "must be floats [n, c, h, w]"),
        (lambda: ablated(SOME, X, Y - 1, grid=3), "0 or more"),
        (lambda: ablated(SOME, X, Y, grid=3, draws=0), "draws must be"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, said):
    with pytest.raises(InputError) as error:
        call()
    assert said in str(error.value)
