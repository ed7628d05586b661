"""The worked example of the docs: it runs, prints what the page says, and the page shows the file that runs."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "logistic.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "logistic.py"


def test_the_step_turns_a_probability_of_0_0474_into_0_8808() -> None:
    found = runpy.run_path(str(EXAMPLE))
    assert found["probability"](found["x"]) == pytest.approx(1 / (1 + math.exp(3)), abs=1e-6)  # 0.0474
    assert found["probability"](found["by_hand"]) == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)  # 0.8808
    result = found["result"]
    assert result.status == ["broken"]
    assert result.x_adv[0].tolist() == found["by_hand"].tolist()
    assert float(result.distance[0]) == 0.5


def test_the_page_shows_the_example_as_it_is() -> None:
    shown = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert shown[1] == EXAMPLE.read_text(encoding="utf-8")


def test_the_page_shows_what_the_example_prints() -> None:
    printed = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True).stdout
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert shown[1] == printed
