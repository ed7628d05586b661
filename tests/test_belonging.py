"""What belongs to a class for the target and what does for people, on a target whose answers are known by hand."""

import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled.explain.belonging import belonging


class Brightness(nn.Module):
    """Three classes by the mean of the image: dark below 0.3, bright above 0.7, grey between; distances as scores."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return -20 * torch.stack([(mean - 0.15).abs(), (mean - 0.5).abs(), (mean - 0.85).abs()], 1)


TARGET = uf.Target(Brightness(), classes=["dark", "grey", "bright"])


def flat(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


def textured(value: float, row: int) -> Tensor:
    image = torch.zeros(1, 1, 4, 4)
    image[:, :, row] = 4 * value if value <= 0.25 else 1.0
    return image * (value / float(image.mean()))


X, Y = (
    flat(0.1, 0.2, 0.5, 0.6, 0.9, 0.25),
    torch.tensor([0, 0, 1, 1, 2, 1]),
)  # the last: people say grey, it is called dark


def test_groups_hold_what_the_target_says_and_what_people_say() -> None:
    found = belonging(TARGET, "dark", X, Y, outsiders={"painted": flat(0.12, 0.55)}, insiders={"lit": flat(0.9, 0.1)})
    by = {row["group"]: row for row in found.rows()}
    assert {name: (row["called"], row["n"], row["class_for_people"]) for name, row in by.items()} == {
        "natural dark": (2, 2, True),
        "natural, not dark": (1, 4, False),
        "painted": (1, 2, False),
        "lit": (1, 2, True),
    }
    assert by["lit"]["called_instead"] == "bright" and by["natural dark"]["called_instead"] is None
    sure = TARGET.scores(flat(0.9)).softmax(1)[0, 2]
    assert by["lit"]["confidence_outside"] == pytest.approx(float(sure))
    assert float(found.groups[3].confidence[0]) == pytest.approx(float(TARGET.scores(flat(0.9)).softmax(1)[0, 0]))
    assert "100.0% of 2 natural dark and 50.0% of 2 lit" in found.sentence()
    assert found.sentence().endswith("of what people do not, of 25.0% of 4 natural, not dark, 50.0% of 2 painted.")
    assert belonging(TARGET, 0, X, Y, outsiders={}).label == 0


def test_rows_of_the_figure_are_the_surest_of_each_side() -> None:
    found = belonging(TARGET, "dark", X, Y, outsiders={"painted": flat(0.25, 0.55, 0.15)}, insiders={"lit": flat(0.9)})
    shown = {(group.name, title): rows.tolist() for group, title, _, rows in found._shown()}
    assert shown == {
        ("natural dark", "people and target say so"): [0, 1],
        ("natural, not dark", "the target alone says so"): [3],
        ("painted", "the target alone says so"): [2, 0],
        ("lit", "people alone say so"): [0],
    }


def test_the_plane_goes_through_a_natural_one_and_two_outsiders() -> None:
    outsiders = {"stripe": textured(0.15, 0), "other stripe": textured(0.1, 2), "grey": flat(0.5)}
    found = belonging(TARGET, "dark", X, Y, outsiders=outsiders, points=20)
    assert found.plane is not None and list(found.plane.marks) == ["natural dark", "stripe", "other stripe"]
    assert belonging(TARGET, "dark", X, Y, outsiders={"grey": flat(0.5), "stripe": textured(0.15, 0)}).plane is None
    pytest.importorskip("matplotlib")
    assert found.image("png") == found.image("png")
    words = found.image("svg")
    assert b"natural dark" in words and b"the target alone says so" in words


def test_colour_images_and_other_bounds_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    target = uf.Target(lambda x: Brightness()(x / 255), bounds=(0.0, 255.0))
    x = flat(25.0, 200.0).expand(-1, 3, -1, -1)
    found = belonging(target, "0", x, torch.tensor([0, 2]), outsiders={})
    assert found.plane is None and found.image("png")[:4] == b"\x89PNG"


def test_bad_classes_and_images_are_refused_in_one_sentence() -> None:
    with pytest.raises(uf.InputError, match="Did you mean 'dark'"):
        belonging(TARGET, "drak", X, Y, outsiders={})
    with pytest.raises(uf.InputError, match="numbered from 0"):
        belonging(TARGET, 3, X, Y, outsiders={})
    with pytest.raises(uf.InputError, match="no natural image of bright"):
        belonging(TARGET, "bright", X[:2], Y[:2], outsiders={})
    with pytest.raises(uf.InputError, match="'small' must be images"):
        belonging(TARGET, "dark", X, Y, outsiders={"small": torch.rand(2, 1, 3, 3)})
    with pytest.raises(uf.InputError, match="one or three channels"):
        belonging(TARGET, "dark", torch.rand(2, 9), Y[:2], outsiders={})
    with pytest.raises(uf.InputError, match="labels of shape"):
        belonging(TARGET, "dark", X, Y[:2], outsiders={})
