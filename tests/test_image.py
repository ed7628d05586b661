"""Pictures as files, and one adversarial image that counts only after its file is read again."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor, nn

from unfooled.core.data import Data
from unfooled.core.target import Target
from unfooled.core.threat import l0, l2, linf
from unfooled.domains import image as files
from unfooled.errors import InputError
from unfooled.evaluate.single import Single, attack_image, resolve_class
from unfooled.report import figures
from unfooled.report.panel import single_panel

BOUNDS = [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)]


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_grey_level_survives_the_way_into_a_file_and_back(tmp_path: Path, bounds: tuple[float, float]) -> None:
    for channels in (1, 3):
        grey = torch.arange(256).view(1, 16, 16).expand(channels, -1, -1)
        x = files.from_levels(grey, bounds)
        path = files.write_png(tmp_path / f"{channels}.png", x, bounds)
        assert torch.equal(files.read_image(path, bounds=bounds), x)
        assert torch.equal(files.levels(x, bounds), grey)
        with Image.open(path) as written:
            assert written.info == {}


def test_pixels_between_the_levels_are_not_written(tmp_path: Path) -> None:
    x = torch.full((1, 4, 4), 0.5003)
    with pytest.raises(InputError, match="between 8-bit levels"):
        files.write_png(tmp_path / "a.png", x)
    assert not any(tmp_path.iterdir())


levels = hnp.arrays(np.int64, (3, 4), elements=st.integers(0, 255))
shifts = hnp.arrays(np.float64, (3, 4), elements=st.floats(-0.3, 0.3))


@given(levels, shifts, st.sampled_from(BOUNDS))
def test_rounding_goes_towards_the_original_and_never_away(
    grey: np.ndarray, shift: np.ndarray, bounds: tuple[float, float]
) -> None:
    span = bounds[1] - bounds[0]
    x = files.from_levels(torch.from_numpy(grey), bounds)
    x_adv = (x + torch.from_numpy(shift).float() * span).clamp(*bounds)
    g = files.to_grid(x_adv, x, bounds)
    assert torch.equal(g, files.from_levels(files.levels(g, bounds), bounds))  # on the grid
    assert torch.equal(files.to_grid(g, x, bounds), g)  # idempotent
    slack = span * 1e-3 / 255 + 1e-6 * span  # a value that lies this near to a level is meant to be on it
    moved, wanted = (g - x).double(), (x_adv - x).double()
    assert (moved.abs() <= wanted.abs() + slack).all()  # no norm grows
    assert ((moved == 0) | (moved.sign() == wanted.sign())).all()
    assert ((wanted - moved).abs() < span / 255 + slack).all()  # and it is the next level, not some other one


def test_rounding_keeps_an_exact_level_that_float32_just_misses() -> None:
    x = files.from_levels(torch.arange(0, 248).view(1, 8, 31))
    for k in range(1, 9):
        up = files.to_grid((x + np.float32(k / 255)).clamp(0, 1), x)
        assert torch.equal(files.levels(up) - files.levels(x), torch.full_like(files.levels(x), k).clamp(max=255))
        down = files.to_grid((x - np.float32(k / 255)).clamp(0, 1), x)
        assert torch.equal(
            files.levels(x) - files.levels(down), torch.full_like(files.levels(x), k).minimum(files.levels(x))
        )
    truncated = ((x - np.float32(1 / 255)).clamp(0, 1) * 255).byte()  # what libraries do loses a level on many pixels
    assert (truncated.long() != (files.levels(x) - 1).clamp(0)).any()


def test_an_original_between_the_levels_is_left_at_the_level_nearest_to_it() -> None:
    x = torch.full((1, 2, 2), 100.4 / 255)
    assert files.levels(files.to_grid(x + 0.3 / 255, x)).unique().tolist() == [100]
    assert files.levels(files.to_grid(x + 1.7 / 255, x)).unique().tolist() == [102]
    assert files.levels(files.to_grid(x - 1.7 / 255, x)).unique().tolist() == [99]


# --- reading ---------------------------------------------------------------------------------------------------------


def photo(height: int = 40, width: int = 60, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (1, 28, 20), (3, 40, 60)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_picture_is_fitted_to_the_targets_shape(tmp_path: Path, shape: tuple[int, int, int], mode: str) -> None:
    photo(mode=mode).save(tmp_path / "a.png")
    x = files.read_image(tmp_path / "a.png", shape)
    assert x.shape == shape
    assert x.dtype == torch.float32
    assert torch.equal(x, files.from_levels(files.levels(x)))


def test_colour_becomes_grey_as_pillow_does_it(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    x = files.read_image(tmp_path / "a.png", (1, 40, 60))
    expected = np.asarray(photo().convert("L"), dtype=np.int64)
    assert np.abs(files.levels(x)[0].numpy() - expected).max() <= 1


def test_what_a_photograph_says_about_its_origin_is_not_written_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    photo().save(tmp_path / "a.jpg", exif=exif, icc_profile=b"secret profile")
    assert b"secret" in (tmp_path / "a.jpg").read_bytes()
    files.write_png(tmp_path / "b.png", files.read_image(tmp_path / "a.jpg"))
    assert b"secret" not in (tmp_path / "b.png").read_bytes()
    assert b"eXIf" not in (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.png", None, "no picture"),
        ("text.png", b"not a picture", "is no PNG"),
        ("half.png", "half", "is damaged"),
        ("bomb.png", "bomb", "pixels"),
        ("moving.webp", "moving", "animated"),
        ("page.tiff", "tiff", "is no PNG"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: object, said: str) -> None:
    buffer = io.BytesIO()
    if content == "half":
        photo().save(buffer, "PNG")
        content = buffer.getvalue()[:200]
    elif content == "bomb":
        Image.new("1", (9000, 9000)).save(buffer, "PNG")
        content = buffer.getvalue()
    elif content == "moving":
        photo().save(buffer, "WEBP", save_all=True, append_images=[photo().rotate(90)])
        content = buffer.getvalue()
    elif content == "tiff":
        photo().save(buffer, "TIFF")
        content = buffer.getvalue()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(InputError, match=said) as caught:
        files.read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_targets_without_pictures_are_told(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    for shape in ((10,), (2, 8, 8), (64, 3)):
        with pytest.raises(InputError, match="not pictures"):
            files.read_image(tmp_path / "a.png", shape)


# --- one attack ------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Two classes, scores (0, w . x - t): the exact Linf distance to the other class is known, the box included."""

    def __init__(self, w: Tensor, threshold: float, classes: int = 2) -> None:
        super().__init__()
        self.w = nn.Parameter(w.flatten())
        self.threshold, self.classes = threshold, classes

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1) @ self.w - self.threshold
        rest = [torch.full_like(lead, -50.0)] * (self.classes - 2)
        return torch.stack([torch.zeros_like(lead), lead, *rest], 1)


def reach(w: Tensor, x: Tensor, eps: float) -> float:
    """How far eps moves w . x at most, the box [0, 1] included."""
    return float(((x.double() + eps * w.double().sign()).clamp(0, 1) - x.double()).mul(w.double()).sum())


def linear_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    luck = torch.Generator().manual_seed(seed)
    x = files.from_levels(torch.randint(0, 256, (3, 8, 8), generator=luck))
    return x, torch.randn(3, 8, 8, generator=luck)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_attack_succeeds_just_above_the_exact_distance_and_never_below(tmp_path: Path, seed: int) -> None:
    x, w = linear_case(seed)
    start = float((x * w).sum())
    module = Linear(w, start + reach(w, x, 8.5 / 255))  # class 0; eight grey levels are too few, nine suffice
    below = attack_image(x, module, threat=linf(8 / 255), steps=20, out=tmp_path / "below")
    assert not below.success
    assert not below.as_floats
    assert "nothing found" in below.reason
    assert not (tmp_path / "below" / "adversarial.png").exists()
    above = attack_image(x, module, threat=linf(9 / 255), steps=20, out=tmp_path / "above")
    assert above.success
    assert above.adversarial.label == 1
    again = np.asarray(Image.open(tmp_path / "above" / "adversarial.png"), dtype=np.int64)
    first = np.asarray(Image.open(tmp_path / "above" / "original.png"), dtype=np.int64)
    assert np.abs(again - first).max() <= 9
    pixels = torch.from_numpy(again).permute(2, 0, 1) / 255
    assert float((pixels.double() * w.double()).sum()) > module.threshold  # fools, by a computation of our own


def test_a_success_between_the_levels_is_no_success(tmp_path: Path) -> None:
    x, w = linear_case()
    module = Linear(w, float((x * w).sum()) + 1.2 / 255 * float(w.norm()))  # one whole level is 1.0 / 255 long
    single = attack_image(x, module, threat=l2(1.35 / 255), steps=40, out=tmp_path / "run")
    assert (single.success, single.as_floats) == (False, True)
    assert "by no image that a file can hold" in single.reason
    assert "was not fooled" in str(single)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["attack.json", "original.png"]
    assert torch.equal(single.x_adv, single.x)


def test_without_a_threat_the_smallest_step_of_the_ladder_that_fools_is_taken() -> None:
    x, w = linear_case()
    module = Linear(w, float((x * w).sum()) + reach(w, x, 2.5 / 255))
    single = attack_image(x, module, steps=20)
    assert single.success
    assert single.threat == repr(linf(4 / 255))
    assert single.size in ("Linf 3/255", "Linf 4/255")


def test_an_l2_attack_on_a_file_stays_in_its_ball() -> None:
    x, w = linear_case()
    module = Linear(w, float((x * w).sum()) + 0.5 * float(w.norm()))  # exact L2 distance 0.5 without the box
    single = attack_image(x, module, threat=l2(1.0), steps=40)
    assert single.success
    assert 0.45 < single.distance <= 1.0
    assert single.size.startswith("L2 ")


def test_bounds_other_than_zero_to_one_and_normalisation() -> None:
    x, w = linear_case()
    inner = Linear(w, float((x * w).sum()) + reach(w, x, 5.5 / 255))
    target = Target(inner, bounds=(-1.0, 1.0), mean=[-1.0] * 3, std=[2.0] * 3)
    single = attack_image(x * 2 - 1, target, threat=linf(12 / 255), steps=20)
    assert single.success
    assert single.distance <= 12 / 255 + 1e-9
    assert (single.x_adv.min() >= -1, single.x_adv.max() <= 1) == (True, True)


def test_a_wanted_class_is_reached_and_the_wrong_one_is_none() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    target = Target(module, classes=["ant", "bee", "giant panda, panda", "gibbon, Hylobates lar", "fly"])
    x = files.from_levels(torch.randint(60, 200, (1, 8, 8)))
    said = int(module(x[None]).argmax())
    for wanted in {0, 3, 4} - {said}:
        single = attack_image(x, target, to=target.classes[wanted], threat=linf(0.4))
        assert single.success
        assert single.adversarial.label == wanted
        assert single.trace[target.classes[wanted]][-1] == pytest.approx(single.adversarial.confidence, abs=1e-6)
    with pytest.raises(InputError, match="already"):
        attack_image(x, target, to=said, threat=linf(0.4))


def test_the_target_is_left_as_it_was_and_the_seed_decides_everything() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.5)).train()
    x = files.from_levels(torch.arange(64).view(1, 8, 8) * 3)
    luck = torch.get_rng_state()
    first, second = (attack_image(x, module, threat=linf(0.3), seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), luck)
    assert module.training
    assert module[2].training
    assert module[1].weight.grad is None
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.noise, second.noise)
    assert first.trace == second.trace


def test_the_control_has_the_size_of_the_attack_in_every_norm() -> None:
    x = files.from_levels(torch.randint(90, 160, (3, 8, 8)))  # away from the ends of the scale
    w = torch.randn(3, 8, 8)
    single = attack_image(x, Linear(w, float((x * w).sum()) + 1.0), threat=linf(20 / 255), steps=20)
    assert single.success
    change, control = (files.levels(t) - files.levels(single.x) for t in (single.x_adv, single.noise))
    assert torch.equal(change.abs().flatten().sort().values, control.abs().flatten().sort().values)
    assert not torch.equal(change, control)
    assert 0 <= single.noise_fooled <= single.noise_draws == 16


def test_the_trace_is_what_the_target_said_on_the_way() -> None:
    x, w = linear_case()
    single = attack_image(x, Linear(w, float((x * w).sum()) + reach(w, x, 5.5 / 255)), threat=linf(10 / 255), steps=20)
    first = single.trace["0"]
    assert len(first) >= 3
    assert first[0] == pytest.approx(single.original.confidence, abs=1e-5)
    assert first[-1] == pytest.approx(float(single.adversarial.confidences[0]), abs=1e-5)
    assert all(a + b == pytest.approx(1, abs=1e-4) for a, b in zip(first, single.trace["1"], strict=True))


def test_an_index_and_a_file_give_the_same_picture(tmp_path: Path) -> None:
    x, w = linear_case()
    module = Linear(w, float((x * w).sum()) + reach(w, x, 5.5 / 255))
    data = Data(torch.stack([x, x.flip(1)]), torch.tensor([1, 0]), name="two", classes=("left", "right"))
    files.write_png(tmp_path / "0.png", x)
    one = attack_image(0, module, data=data, threat=linf(8 / 255), steps=10)
    other = attack_image(str(tmp_path / "0.png"), module, data=data, threat=linf(8 / 255), steps=10)
    assert torch.equal(one.x_adv, other.x_adv)
    assert (one.source, other.source) == ("two[0]", "0.png")
    assert one.truth == "right"
    assert any("The label says right" in note for note in one.notes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": 5}, "there is no data"),
        ({"image": 9, "data": True}, "has the images 0 to 1"),
        ({"image": "nowhere.png"}, "no picture"),
        ({"image": torch.zeros(64)}, "shape"),
        ({"image": torch.full((3, 8, 8), 2.0)}, "outside the target's bounds"),
        ({"image": torch.full((3, 8, 8), float("nan"))}, "outside the target's bounds"),
        ({"image": torch.zeros(3, 8, 8), "to": 7}, "classes 0 to 1"),
        ({"image": torch.zeros(3, 8, 8), "to": "--1"}, "have no names"),
        ({"image": torch.zeros(3, 8, 8), "to": "9" * 5000}, "have no names"),
        ({"image": torch.zeros(3, 8, 8), "threat": linf(0.0)}, "below one grey level"),
        ({"image": torch.zeros(3, 8, 8), "threat": linf(0.9 / 255)}, "below one grey level"),
        ({"image": torch.zeros(3, 8, 8), "threat": l2(0.9 / 255)}, "below one grey level"),
        ({"image": torch.zeros(3, 8, 8), "threat": l0(0)}, "at least 1"),
        ({"image": torch.zeros(3, 8, 8), "threat": l0(10)}, "apgd"),
        ({"image": "²"}, "no picture"),
        ({"image": torch.zeros(3, 8, 8), "to": "cat"}, "have no names"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_no_folder(tmp_path: Path, given: dict[str, object], said: str) -> None:
    x, w = linear_case()
    data = Data(torch.stack([x, x]), torch.tensor([0, 1]), name="two") if given.pop("data", None) else None
    with pytest.raises(InputError, match=said):
        attack_image(
            given.pop("image"), Linear(w, 1e3), data=data, out=tmp_path / "run", **({"threat": linf(0.1)} | given)
        )
    assert not any(tmp_path.iterdir())


def test_an_eps_without_room_costs_no_pass() -> None:
    x, w = linear_case()
    asked = []
    module = Linear(w, 1e3)
    module.register_forward_hook(lambda *_: asked.append(1))
    with pytest.raises(InputError, match="below one grey level"):
        attack_image(x, module, threat=linf(0.49 / 255))
    assert not asked


def test_any_whole_number_is_a_seed() -> None:
    x, w = linear_case()
    module = Linear(w, float((x * w).sum()) + reach(w, x, 2.5 / 255))
    for seed in (99999999999999999999, -1):
        single = attack_image(x, module, threat=linf(4 / 255), steps=5, seed=seed)
        assert (single.success, single.seed) == (True, seed)


def test_a_confidence_that_is_not_whole_is_not_written_as_whole() -> None:
    x, w = linear_case()
    single = attack_image(x, Linear(w, float((x * w).sum()) + 8.1), threat=linf(2 / 255), steps=5)
    assert 0.9995 < single.original.confidence < 1
    assert "0 (>99.9%)" in str(single) and "100.0%" not in str(single)


def test_an_output_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    x, w = linear_case()
    with pytest.raises(InputError, match="exists already"):
        attack_image(x, Linear(w, 1e3), threat=linf(0.1), out=tmp_path)
    assert not any(tmp_path.iterdir())


NAMES = ["giant panda, panda", "lesser panda, red panda, panda", "gibbon, Hylobates lar", "7", "crane"]


@pytest.mark.parametrize(
    ("wanted", "place"),
    [("gibbon", 2), ("GIBBON", 2), (" Hylobates LAR ", 2), ("gibbon, hylobates lar", 2), (1, 1), ("2", 2), ("7", 3)],
)
def test_classes_are_found_by_number_name_and_synonym(wanted: int | str, place: int) -> None:
    assert resolve_class(wanted, NAMES, 5) == place


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("gibon", "Did you mean 'gibbon'"), ("panda", "names the classes 0, 1"), (5, "0 to 4"), ("-1", "0 to 4")],
)
def test_unknown_and_ambiguous_classes_are_told(wanted: int | str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve_class(wanted, NAMES, 5)


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224), (3, 50, 120), (1, 9, 7)])
def test_the_attack_picture_shows_the_images_it_is_about(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    x = files.from_levels(torch.randint(80, 170, shape))
    w = torch.randn(shape)
    w = w / reach(w, x, 5.5 / 255)
    module = Linear(w, float((x * w).sum()) + 1, classes=4)
    target = Target(module, classes=["zéro <b>&", "o\x00ne\nline", "日本", "x" * 300])
    single = attack_image(x, target, threat=linf(12 / 255), steps=10)
    assert single.success
    picture = single_panel(single)
    assert picture.mode == "RGB"
    assert picture.width / picture.height > 1.2
    everywhere = set(picture.get_flattened_data())
    for drawn in (figures.picture(single.x), figures.picture(single.x_adv)):
        if max(drawn.size) < 100:  # enlarged without smoothing: each colour of the image is in the picture
            assert set(drawn.convert("RGB").get_flattened_data()) <= everywhere


def test_a_failed_attack_can_be_drawn_too() -> None:
    x, w = linear_case()
    single = attack_image(x, Linear(w, 1e3), threat=linf(1 / 255), steps=3)
    assert isinstance(single, Single)
    assert not single.success
    assert single_panel(single).width > 0
