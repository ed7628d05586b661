"""`unfooled evaluate`: the main job. Robust accuracy of a target on data, a table, and a run directory."""

import inspect
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unfooled.cli import _words
from unfooled.errors import InputError, StorageError, Unavailable, UnfooledError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unfooled.core.result import Evaluation

AccessName = Literal["decision", "label", "scores", "gradient"]

_REPORT = 3.0  # seconds of a budget that are kept for writing the report


def evaluate(
    target: str = _words.TARGET,
    data: str | None = None,
    /,
    *,
    threat: str | None = None,
    suite: str = "quick",
    limit: int | None = None,
    out: Path | None = None,
    batch_size: str = "auto",
    device: str = "auto",
    seed: int = 0,
    budget: str | None = None,
    fail_under: float | None = None,
    access: AccessName | None = None,
    queries: int | None = None,
    curve: Annotated[bool, Parameter(negative="--no-curve")] = True,
    weights: Path | None = None,
    resize: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    reject: str | None = None,
    wear: list[str] | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
    resume: Path | None = None,
    json: _words.Flag = False,
    resuming: Annotated[Path | None, Parameter(parse=False)] = None,
) -> int:
    """Measure how robust a classifier is: attack every image, report what still stands and show what fell.

    The status stands beside the number and is the exit code: 0 trusted, 3 suspect, 4 withheld.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module or a scikit-learn
        classifier, an ONNX file (model.onnx), the address of an endpoint (https://...), or a timm name.
    data
        A name from `unfooled list data`, an .npz with `images` and `labels`, or a folder of class folders of images
        [default: the target's own data set, else digits].
    threat
        What the attacker may change: linf(8/255), l2(0.5), l1(12) or l0(10), for inputs in [0, 1]
        [default: linf at the eps of the target's model card, else linf(0.1)].
    suite
        The attacks: quick (seconds), standard (the full measure), autoattack (the literature's set, exactly), or calls
        from `unfooled list attacks`, such as "pgd(steps=40); hop_skip_jump(queries=5000)".
    limit
        Only the first N examples.
    out
        New folder for the report and the records [default: runs/<time>-<hash>].
    batch_size
        How many examples are in work at a time, or auto.
    device
        cpu, cuda, cuda:1, mps, or auto.
    seed
        Seed of all random choices.
    budget
        Longest time, such as 90s, 5m or 1h30m; what is not finished in time is reported as a bracket.
    fail_under
        Exit with 5 unless the number is trusted and its interval lies at or above this share, such as 0.45.
    access
        What the attacker may ask the target for at most [default: gradient].
    queries
        How many forward passes the attacker has per example.
    curve
        Also measure robust accuracy at five sizes of the threat, with suite quick on at most 128 examples.
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    resize
        Resize images: the shorter side (224), or height by width (224x256).
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    reject
        How the target abstains: last, its last output means no answer; or the least softmax confidence with which it
        answers, such as 0.9 [default: it always answers; an extra last output is found by itself].
    wear
        A defence that the target wears, such as "median(3)"; several are put on in their order, the first sees the
        image first [default: none; `unfooled list defences` has them].
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    resume
        Go on with the run in this directory, which was killed or interrupted; all settings are its own.
    json
        Print summary.json and nothing else.
    """
    given, begun = locals(), time.monotonic()
    if resume is not None:
        known = _resumed(resume, given)
        return evaluate(known.pop("target"), known.pop("data"), **known, resuming=resume)
    inputs = _words.Inputs.of(given)
    _words.at_least_one(queries, "--queries")
    width, most = _words.slots(batch_size), _words.seconds(budget)
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise InputError(f"--fail-under is a share from 0 to 1, not {fail_under:g}; write 0.45 for 45%.")

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.core import record

    folder = record.check_free(out) if out is not None else record.default_out(_told(given))

    from unfooled import report
    from unfooled.core.access import Access
    from unfooled.evaluate import evaluate as measure

    with Live(quiet=json) as live:
        model, examples, ball, given["data"] = inputs.load()
        given["threat"] = threat or repr(ball)
        left = _left(most, budget, begun)
        about = {"format": 1, "command": command(given), "settings": {"words": _told(given)}}
        done = 0
        if resuming is None:
            record.write_json(record.new_run(folder) / "run.json", about)
        else:
            folder = resuming
            done = (folder / record.JOURNAL).read_bytes().count(b'"attack":')
        try:
            result = measure(
                model,
                examples,
                threat=ball,
                suite=suite,
                seed=seed,
                batch_size=width,
                device=device,
                access=None if access is None else Access[access.upper()],
                queries=queries,
                budget=left,
                curve=curve,
                progress=live,
                journal=folder / record.JOURNAL,
            )
        except BaseException as error:
            passing = isinstance(error, StorageError | Unavailable)
            useless = isinstance(error, UnfooledError) and not passing  # it would come again
            if resuming is None:
                record.forget(folder, useless=useless)
            if not useless:
                _say_how_to_resume(folder)
            raise
        live.say("writing the report")
        result.command = command(given)
        result.settings["words"] = _told(given)
        if resuming is not None:
            result.notes.append(
                f"Resumed: {done} (example, attack) pairs were done already, of {len(result.y)} examples."
            )
        report.write(result, folder, begun=True)
    if json:
        sys.stdout.write((folder / "summary.json").read_text(encoding="utf-8"))
    else:
        _words.console().print(summary(result, folder), crop=False)
    if result.settings.get("interrupted"):
        _say_how_to_resume(folder)
        return 130
    return result.exit_code(fail_under)


_ASIDE = ("resume", "resuming", "out", "json", "fail_under")  # what decides nothing of the result


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the result among the arguments, as JSON."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if k not in _ASIDE}


def _resumed(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the run in `folder`; raises InputError where one was given that differs from its own."""
    from unfooled.core import record
    from unfooled.core.record import read_json

    about = read_json(record.check_own(folder) / "run.json")
    settings = about.get("settings")
    stored = settings.get("words") if isinstance(settings, dict) else None
    parameters = inspect.signature(evaluate).parameters
    own = [name for name in parameters if name not in _ASIDE]
    if not isinstance(stored, dict) or not all(_plain(k, stored.get(k)) for k in own):
        raise InputError(f"{folder / 'run.json'} does not say how the run was begun, so it cannot be resumed.")
    for name, value in _told(given).items():
        if value != parameters[name].default and value != stored.get(name):
            raise InputError(
                f"--{name.replace('_', '-')} is {_words.listed(value)} here and {_words.listed(stored.get(name))} in "
                f"{folder}; "
                "a resumed run keeps its settings: leave it out."
            )
    known = {name: stored[name] for name in own if name in stored}
    paths = {k: Path(known[k]) for k in ("weights", "classes", "data_dir") if known.get(k) is not None}
    return known | paths | {"json": given["json"], "fail_under": given["fail_under"]}


def _plain(name: str, value: Any) -> bool:
    """Whether a value is what a command line holds: a word, a number, nothing, or the words of --wear."""
    words = value if name == "wear" and isinstance(value, list) else [value]
    return all(isinstance(word, str | int | float | None) for word in words)


def _say_how_to_resume(folder: Path) -> None:
    """Tell the command that goes on with the run, if there is something to go on with."""
    from unfooled.core.record import JOURNAL

    if (folder / JOURNAL).is_file():
        _words.say_how_to_go_on(shlex.join(["unfooled", "evaluate", "--resume", str(folder)]))


def _left(budget: float | None, said: str | None, begun: float) -> float | None:
    """Return what of the budget is left to attack with, after loading and before writing the report."""
    if budget is None:
        return None
    spent = time.monotonic() - begun
    left = round(budget - spent - min(_REPORT, 0.2 * budget), 1)
    if left <= 0:
        raise InputError(f"--budget {said} is over before the first attack: loading alone took {spent:.1f} s.")
    return left


def command(given: dict[str, object]) -> str:
    """Return the command line that repeats a run: everything that decides the result, spelled out."""
    without = ("out", "json", "curve", "resume", "resuming")
    said = _words.command_line("evaluate", ("target", "data"), given, without=without)
    return said if given["curve"] else f"{said} --no-curve"


def summary(result: "Evaluation", folder: Path) -> "RenderableType":
    """Return what the terminal shows: the number, its interval and status on one line, the attacks, the findings."""
    from rich.console import Group
    from rich.table import Table

    from unfooled.core.result import Status
    from unfooled.report.page import passes

    cell, line = _words.cell, _words.line
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("attack", "broken", "robust accuracy after", "forward", "backward", "seconds"):
        table.add_column(title, justify="left" if title == "attack" else "right", overflow="fold")
    table.add_row("none (clean)", "", f"{result.clean_accuracy:.1%}", "", "", "")
    for row in result.attacks:
        if row.skipped:
            table.add_row(cell(row.name), cell(f"skipped: {row.skipped}", "dim"), "", "", "", "")
            continue
        table.add_row(
            cell(row.name),
            f"{row.broken} of {row.attempted}",
            "withheld" if result.withheld else f"at most {row.robust_accuracy_after:.1%}",
            f"{row.forward:,}",
            f"{row.backward:,}",
            f"{row.seconds:.1f}",
        )
    rest = passes(result)
    if rest["other_forward"] > 0 and rest["other_backward"] >= 0:
        first = f"{rest['other_forward']:,}", f"{rest['other_backward']:,}"
        table.add_row("first look at every example", "", "", *first, "", style="dim")
    if rest["spare_forward"] or rest["spare_backward"]:
        spare = f"-{rest['spare_forward']:,}", f"-{rest['spare_backward']:,}"
        table.add_row("padding of batches, charged to no example", "", "", *spare, "", style="dim")

    head = f"{result.target} on {result.data}, threat {result.threat}, suite {result.suite}, seed {result.seed}"
    cost = f"{result.forward_total:,} forward and {result.backward_total:,} backward passes in {result.seconds:.1f} s"
    if result.check_seconds:
        cost += f", of which {result.check_seconds:.1f} s for the doctor and the controls"
    if invalid := result.count(Status.INVALID):
        cost += f" · {invalid} invalid {'example' if invalid == 1 else 'examples'} not counted"
    parts: list[RenderableType] = [line(head), line(str(result), "bold"), *map(line, _counts(result)), cell(""), table]
    if result.findings:
        parts += [cell(""), _words.findings(result.findings)]
    notes = [line(f"note: {note}") for note in result.notes]
    return Group(*parts, cell(""), *notes, line(cost), line(f"report: {folder / 'report.html'}"))


def _counts(e: "Evaluation") -> list[str]:
    """Return the three counts, the number for files, and accuracy beside rejection, a line each."""
    from unfooled.core.result import UNDECIDED, Status

    wrong, broken = e.count(Status.MISCLASSIFIED), e.count(Status.BROKEN)
    fell = f" ({share(e.success_rate, e.success_interval)} of the {e.n - wrong} right before)" if e.n > wrong else ""
    text = f"{wrong} wrong before any attack · {broken} broken{fell} · {e.count(Status.SURVIVED)} survived"
    if left := e.count(*UNDECIDED):
        text += f" · {left} not finished"
    lines = [text]
    if e.draws > 1:
        lines.append(f"the target is random: counts and table are of whole images, the number averages {e.draws} draws")
    if e.grid_accuracy is not None and e.grid_interval and not e.withheld:
        lines.append(f"against 8-bit files at most {share(e.grid_accuracy, e.grid_interval)}")
    if (r := e.rejection) and not e.withheld:
        lines.append(
            f"right and accepted {r.clean_right:.1%}, rejected {r.clean_rejected:.1%} before any attack; "
            f"under attack {r.right:.1%} and {r.rejected:.1%}, wrong and accepted {r.wrong['wrong_accepted']:.1%} "
            f"(of {e.n})"
        )
    return lines


def share(value: float, interval: tuple[float, float]) -> str:
    """Return a share with its interval: "60.2%, 95% interval 56.7-63.6%"."""
    return f"{value:.1%}, 95% interval {100 * interval[0]:.1f}-{interval[1]:.1%}"
