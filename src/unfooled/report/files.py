"""The files of a run directory, written from the record alone."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unfooled.core import record
from unfooled.core.result import Evaluation, Status
from unfooled.errors import safe_text

COLUMNS = (
    "index", "id", "label", "outcome", "broken_by", "distance", "margin", "label_clean", "label_adv",
    "confidence_clean", "confidence_adv", "forward", "backward", "steps",
)  # fmt: skip


def write(evaluation: Evaluation, out: Path | str, *, images: bool = True, begun: bool = False) -> Path:
    """Make the run directory `out` and write what `evaluation` found; return `out`.

    `summary.json` holds the numbers (`padding`: rows of batches charged to no example, inside the attacks' passes and
    outside the totals), `run.json` what is needed to run it again, `examples.parquet` one row per example,
    `adversarials.npz` the broken examples beside their originals, `report.html` the page. The data files come first, so
    that nothing measured is lost when a picture cannot be drawn. Without `images` neither the page nor a file shows an
    example: no `adversarials.npz`. Raises `InputError` when `out` exists; nothing is ever overwritten but the run's
    own files, where it was `begun`: then `out` is there already and holds its journal.
    """
    from unfooled.report.page import passes, render

    out = record.check_own(Path(out)) if begun else record.new_run(Path(out))
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    spare = passes(evaluation)
    padding = {"forward": spare["spare_forward"], "backward": spare["spare_backward"]}
    record.write_json(out / "summary.json", evaluation.summary() | {"padding": padding})
    record.write_json(out / "run.json", run_record(evaluation, written=written))
    _write_examples(evaluation, out / "examples.parquet")
    if images:
        _write_adversarials(evaluation, out / "adversarials.npz")
    record.write_text(out / "report.html", render(evaluation, images=images, written=written))
    return out


def run_record(evaluation: Evaluation, *, written: str = "") -> dict[str, Any]:
    """Return what `run.json` holds: the settings, versions and fingerprints that a repeated run is compared by."""
    e = evaluation
    return {
        "format": 1,
        "command": e.command,
        "target": e.target,
        "data": e.data,
        "examples_sha256": record.fingerprint(e.x, e.y),
        "threat": e.threat,
        "suite": e.suite,
        "seed": e.seed,
        "attacks": [row.name for row in e.attacks],
        "classes": e.classes,
        "settings": finite(e.settings),
        "versions": e.versions,
        "written": written,
    }


def finite(value: Any) -> Any:
    """Return `value` with every float that JSON cannot hold (inf, nan) as its name."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _write_examples(e: Evaluation, path: Path) -> None:
    import duckdb
    import numpy as np

    columns = {
        "index": np.arange(len(e.y)),
        "id": e.ids.numpy(),
        "label": e.y.numpy(),
        "outcome": np.array([str(o) for o in e.outcome], dtype=object),
        "broken_by": np.array([safe_text(name) for name in e.broken_by], dtype=object),
        "distance": e.distance.double().numpy(),
        "margin": e.margin.double().numpy(),
        "label_clean": e.label_clean.numpy(),
        "label_adv": e.label_adv.numpy(),
        "confidence_clean": e.confidence_clean.double().numpy(),
        "confidence_adv": e.confidence_adv.double().numpy(),
        "forward": e.forward.numpy(),
        "backward": e.backward.numpy(),
        "steps": e.steps_to_break.numpy(),
    }
    assert tuple(columns) == COLUMNS
    unknown = {"label_clean", "label_adv", "steps"}  # -1 in memory, NULL in the file
    chosen = ", ".join(f'nullif("{c}", -1) as "{c}"' if c in unknown else f'"{c}"' for c in COLUMNS)
    with record.whole_file(path) as temporary, duckdb.connect(config={"threads": 1}) as database:
        database.register("columns", columns)
        target = str(temporary).replace("'", "''")
        database.execute(f"COPY (SELECT {chosen} FROM columns) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def _write_adversarials(e: Evaluation, path: Path) -> None:
    import numpy as np

    rows = [i for i, o in enumerate(e.outcome) if o is Status.BROKEN]
    with record.whole_file(path) as temporary, open(temporary, "xb") as file:
        np.savez_compressed(
            file,
            index=np.array(rows, dtype=np.int64),
            id=e.ids[rows].numpy(),
            label=e.y[rows].numpy(),
            label_adv=e.label_adv[rows].numpy(),
            x=e.x[rows].cpu().numpy(),
            x_adv=e.x_adv[rows].cpu().numpy(),
        )
