"""A real ImageNet network takes the panda for a gibbon, an ostrich and a vulture, and the saved files show it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import published
from examples import panda

CLASSES = {"gibbon": 368, "ostrich": 9, "vulture": 23}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)  # [224, 224, 3]


def ask(picture: np.ndarray) -> tuple[int, float]:
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    confidence = published.mobilenet_v2()(x).softmax(1)[0]
    return int(confidence.argmax()), float(confidence.max())


@pytest.mark.parametrize("wanted", panda.WANTED)
def test_the_panda_is_turned_into_another_animal(outside_data: Path, tmp_path: Path, wanted: str) -> None:
    single = panda.fool(wanted, panda.panda_target(), tmp_path / wanted)

    original, adversarial = pixels(tmp_path / wanted / "original.png"), pixels(tmp_path / wanted / "adversarial.png")
    assert ask(original)[0] == panda.PANDA + 1
    label, confidence = ask(adversarial)
    assert label == CLASSES[wanted] + 1
    assert 1 <= np.abs(adversarial - original).max() <= 2

    rng = np.random.default_rng(0)  # noise of the same size does nothing
    noise = np.clip(original + 2 * rng.choice([-1, 1], original.shape), 0, 255)
    assert ask(noise)[0] == panda.PANDA + 1

    assert single.success
    assert single.adversarial.name == wanted
    assert single.adversarial.confidence == pytest.approx(confidence, abs=1e-4)
    assert json.loads((tmp_path / wanted / "attack.json").read_text())["adversarial"]["label"] == label
    with Image.open(tmp_path / wanted / "panel.png") as figure:
        assert figure.width > 3 * 224
