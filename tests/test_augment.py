"""Augmentation: each row is changed as promised, by itself, from the generator alone."""

import pytest
import torch

from unfooled.core.augment import Crops, Cutout, Flips, Shifts, augment
from unfooled.errors import InputError


def luck(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 400, c: int = 2, h: int = 5, w: int = 6) -> torch.Tensor:
    return torch.rand(n, c, h, w, generator=luck(1))


def test_flips_mirror_half_of_the_rows_and_leave_the_rest() -> None:
    x = images()
    made = Flips()(x, luck())
    mirrored = (made == x.flip(-1)).flatten(1).all(1)
    assert bool((mirrored ^ (made == x).flatten(1).all(1)).all())
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize(("part", "mode"), [(Crops(2), "reflect"), (Shifts(2), "constant")])
def test_every_crop_is_one_of_the_windows_and_all_windows_are_drawn_alike(part: Crops | Shifts, mode: str) -> None:
    x = images(2000)
    made = part(x, luck())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode=mode)
    which = torch.stack([
        (made == padded[:, :, i : i + 5, j : j + 6]).flatten(1).all(1) for i in range(5) for j in range(5)
    ])  # fmt: skip
    assert which.sum(0).eq(1).all()
    assert which.sum(1).min() > 40 and which.sum(1).max() < 125  # 80 each


def test_a_cutout_is_a_square_of_the_mean_colour_cut_off_at_the_rim() -> None:
    x = images(2000, 2, 8, 8)
    made = Cutout(3)(x, luck())
    gone = (made != x).any(1)
    sizes = gone.flatten(1).sum(1)
    assert set(sizes.tolist()) == {4, 6, 9}
    assert 0.5 < (sizes == 9).float().mean() < 0.63  # (6 / 8) squared
    mean = x.mean((-2, -1), keepdim=True).expand_as(x)
    torch.testing.assert_close(made[gone[:, None].expand_as(x)], mean[gone[:, None].expand_as(x)])
    boxes = gone.any(2).sum(1) * gone.any(1).sum(1)
    assert torch.equal(boxes, sizes)  # a rectangle without holes


def test_one_seed_one_result_whatever_the_global_state() -> None:
    x, every = images(), augment("flips+crops(2)+shifts(1)+cutout(3)")
    first = every(x, luck(3))
    torch.manual_seed(9)
    assert torch.equal(every(x, luck(3)), first) and not torch.equal(every(x, luck(4)), first)
    assert first.shape == x.shape and first.dtype == x.dtype


def test_a_text_is_read_and_printed_alike() -> None:
    for text in ("flips", "crops(4)", "flips+crops(2)", "flips+shifts(2)+cutout(8)"):
        assert str(augment(text)) == text
    x = images()
    g, other = luck(), luck()
    assert torch.equal(augment("flips+crops(2)")(x, g), Crops(2)(Flips()(x, other), other))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flip", "Did you mean 'flips'"), ("", "join flips"), ("crops", "pixels from 1"), ("flips(2)", "without"),
        ("crops(0)", "pixels from 1"), ("crops(-1)", "join flips"), ("crops(2)+", "join flips"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        augment(text)


def test_what_is_no_image_is_refused() -> None:
    for part in (Flips(), Crops(2), Shifts(2), Cutout(2)):
        with pytest.raises(InputError, match="cannot be cut"):
            part(torch.rand(3, 7), luck())
    with pytest.raises(InputError, match="mirrors more"):
        Crops(5)(images(), luck())
