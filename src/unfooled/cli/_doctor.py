"""`unfooled doctor`: look at a target before anything is attacked, and say what would make a number lie."""

import math
import sys
from pathlib import Path

from unfooled.cli import _words

SILENT = "Nothing found: inputs, outputs, state and gradients are as an attack needs them."


def doctor(
    target: str = _words.TARGET,
    data: str | None = None,
    /,
    *,
    threat: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    seed: int = 0,
    weights: Path | None = None,
    resize: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    reject: str | None = None,
    wear: list[str] | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
    json: _words.Flag = False,
) -> int:
    """Look at a target with a few dozen small passes and say what would make its robust accuracy a lie.

    Exit code 0: nothing found, or nothing that puts a number in doubt; 3: a number would be suspect, or other attacks
    are needed; 4: no number would be given.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module or a scikit-learn
        classifier, an ONNX file (model.onnx), the address of an endpoint (https://...), or a timm name.
    data
        A name from `unfooled list data`, an .npz with `images` and `labels`, or a folder of class folders of images
        [default: the target's own data set, else digits].
    threat
        The size of change that gradients and landscape are looked at within, such as linf(8/255)
        [default: linf at the eps of the target's model card, else linf(0.1)].
    limit
        Only the first N examples.
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
    json
        Print the findings as JSON.
    """
    inputs = _words.Inputs.of(locals())

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.evaluate import doctor as examine

    with Live(quiet=json) as live:
        model, examples, ball, _ = inputs.load()
        live.say(f"looking at {model.name}")
        found = examine(model, examples, threat=ball, seed=seed)
    if json:
        from unfooled.core.record import json_text

        content = {"target": model.name, "data": examples.name, "threat": repr(ball)}
        findings = [
            vars(f) | {"figure": f.figure if f.figure is not None and math.isfinite(f.figure) else None}
            for f in found.findings
        ]
        cost = {"forward": found.forward, "seconds": found.seconds}
        sys.stdout.write(json_text(content | {"findings": findings} | cost))
    else:
        screen = _words.console()
        screen.print(_words.line(f"{model.name} on {examples.name}, threat {ball!r}"), soft_wrap=True)
        screen.print(_words.findings(found.findings) if found.findings else _words.cell(SILENT))
        screen.print(_words.line(f"{found.forward:,} forward passes in {found.seconds:.1f} s"), soft_wrap=True)
    consequences = {f.consequence for f in found.findings}
    return 4 if "withheld" in consequences else 3 if consequences & {"suspect", "escalated"} else 0
