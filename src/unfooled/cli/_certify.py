"""`unfooled certify`: what no attack can break, beside what attacks do break."""

import sys
from pathlib import Path
from typing import Literal

from unfooled.cli import _words
from unfooled.errors import InputError, safe_text


def certify(
    target: str = _words.TARGET,
    data: str | None = None,
    /,
    *,
    threat: str | None = None,
    method: Literal["auto", "crown", "ibp", "smoothing"] = "auto",
    sigma: float | None = None,
    draws: int | None = None,
    alpha: float | None = None,
    out: Path | None = None,
    suite: str = "standard",
    limit: int | None = None,
    device: str = "auto",
    seed: int = 0,
    weights: Path | None = None,
    resize: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
) -> int:
    """Bracket robust accuracy: certified from below and attacked from above, on the same examples.

    Bounds certify small ReLU networks, in Linf, L2 or L1; smoothing certifies any classifier behind Gaussian noise, in
    L2, and is about that noisy classifier, which is then attacked too. Exit code 3 where the two contradict each other.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module, or a timm name.
    data
        What is certified: a name from `unfooled list data`, an .npz with `images` and `labels`, or a folder of class
        folders of images [default: the target's own data set].
    threat
        What may be changed: linf(0.1), l2(0.5) [default: linf at the eps of the target's model card].
    method
        Bounds by ibp (intervals) or crown (lines), auto for both, or smoothing.
    sigma
        Deviation of the noise of smoothing [default: half of the threat's eps].
    draws
        Noisy copies of every example that a certificate of smoothing rests on [default: 10000].
    alpha
        Probability at most of a wrong certificate of smoothing [default: 0.001].
    out
        New folder for the numbers and the picture [default: runs/<time>-<hash>].
    suite
        The attacks on bounded networks: quick or standard.
    limit
        Take the first N examples only.
    device
        cpu, cuda, cuda:1, mps, or auto.
    seed
        Seed of all random choices.
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    resize
        Resize images: the shorter side (224), or height by width (224x256).
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    """
    given = locals()
    _words.at_least_one(draws, "--draws")
    noise = {"sigma": sigma, "draws": draws, "alpha": alpha}
    asked = {name: value for name, value in noise.items() if value is not None}
    if asked and method != "smoothing":
        raise InputError(f"--{next(iter(asked))} belongs to --method smoothing; add that, or leave it out.")
    inputs = _words.Inputs.of(given | {"reject": None, "wear": None})

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.core import record
    from unfooled.errors import MissingExtra

    folder = record.check_free(out) if out is not None else record.default_out(given)

    from unfooled.evaluate.bracket import bracket

    with Live() as live:
        model, examples, ball, _ = inputs.load()
        live.say(f"certifying {model.name}")
        found = bracket(model, examples, threat=ball, method=method, suite=suite, seed=seed, progress=live, **asked)  # type: ignore[arg-type]
        record.new_run(folder)
        record.write_json(folder / "certify.json", {
            **found.summary(), "examples": found.rows(),
            "command": _words.command_line("certify", ("target", "data"), given, without=("out",)),
        })  # fmt: skip
        try:
            record.write_bytes(folder / "certified.png", found.image())
        except MissingExtra as error:
            live.note(str(error))
    lines = [found.sentence(), f"numbers and picture: {folder}"]
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in lines))
    return found.exit_code
