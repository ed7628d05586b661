"""What every test shares: one torch thread per worker, the outside data, and a world left as it was found."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: Ctrl-C would be lost
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # processes that tests start compute with one thread too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many contract tests ran and how many were skipped, each skip being a row with a reason."""
    counts = {
        outcome: sum("contract" in report.nodeid for report in terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "failed", "skipped")
    }
    if any(counts.values()):
        terminalreporter.write_line("contract tests: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """The folder of data that is not part of the project: UNFOOLED_DATA, else ../shared/data."""
    folder = Path(os.environ.get("UNFOOLED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"there is no data folder at {folder}; name one in UNFOOLED_DATA")
    return folder


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """Seed every test alike, and fail one that leaves torch's global settings changed behind it."""
    torch.manual_seed(0)
    before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    yield
    after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    torch.set_grad_enabled(before[0])
    torch.set_default_dtype(before[2])
    assert after == before, "the test left grad mode, inference mode or the default dtype changed"


@pytest.fixture
def same_luck() -> Iterator[None]:
    """Ask for this where the code under test must leave torch's random state as it was."""
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state), "the code under test moved torch's random state"
