"""Results on disk: one JSON file a benchmark, one entry a case, each with the machine, the date and the versions."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
SCRATCH = Path(__file__).parents[1] / "runs" / "benchmarks"
"""Where entries go that are no measurement of record; git ignores it."""


def read(name: str, *, folder: Path | None = None) -> dict[str, Any]:
    """Return the entries of one benchmark by case, {} when it never ran."""
    path = (folder or FOLDER) / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(name: str, case: str, entry: dict[str, Any], *, folder: Path = FOLDER) -> None:
    """Put one case's entry into the benchmark's file; the other cases stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    entries = read(name, folder=folder) | {case: entry | {"where": where()}}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def where() -> dict[str, Any]:
    """Return the machine, its load, the date and the versions that a timing depends on."""
    import unfooled

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[1], 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "unfooled": unfooled.__version__,
            "pyautoattack": _version("pyautoattack"),
        },
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
