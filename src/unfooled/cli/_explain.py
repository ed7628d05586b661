"""`unfooled explain`: one image that fools the target, and a page that says why."""

import sys
from pathlib import Path

from unfooled.cli import _words
from unfooled.errors import InputError, safe_text


def explain(
    target: str = _words.TARGET,
    example: str = "0",
    /,
    *,
    adversarial: Path | None = None,
    against: list[str] | None = None,
    to: str | None = None,
    threat: str | None = None,
    out: Path | None = None,
    data: str | None = None,
    steps: int = 100,
    seed: int = 0,
    shape: str | None = None,
    device: str = "auto",
    weights: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    wear: list[str] | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
) -> int:
    """Say why a target is fooled by one example: one page, with a control beside every measurement.

    What changed and how little, along which direction, how far the boundary is elsewhere, whether the change lies in
    the data's own directions, whether it carries over to other models, and what the target now sees. Takes seconds.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module or a scikit-learn
        classifier, an ONNX file (model.onnx), the address of an endpoint (https://...), or a timm name.
    example
        A picture file, or the number of an image of the data set.
    adversarial
        The changed picture that fools the target [default: it is made, as `unfooled attack` makes it].
    against
        Another target that the change is shown to; may be given several times
        [default: the zoo's others for the same data, and simple classifiers fitted on its training images].
    to
        Class to turn it into, by name or number [default: any other class].
    threat
        What may be changed, such as linf(8/255) or l2(0.5) [default: 1, 2, 4 ... 64 grey levels until one suffices].
    out
        New folder for the page, its figures and its numbers [default: runs/<time>-<hash>].
    data
        Data set that a number points into and whose training images are compared with: a name, an .npz or a folder
        [default: the target's own data set].
    steps
        Steps of the attack.
    seed
        Seed of all random choices.
    shape
        Channels, height and width that the target takes, such as 3x224x224
        [default: those of the data set, else of the picture].
    device
        cpu, cuda, cuda:1, mps, or auto.
    weights
        A .safetensors or weights-only checkpoint to load into the target.
    mean
        Per-channel mean that the target expects to be subtracted, such as 0.485,0.456,0.406.
    std
        Per-channel standard deviation that the target expects to be divided by.
    wear
        A defence that the target wears, such as "median(3)"; several are put on in their order, the first sees the
        image first [default: none; `unfooled list defences` has them].
    classes
        A text file with one class name per line.
    data_dir
        Where named data sets lie [default: the variable UNFOOLED_DATA, then ../shared/data].
    """
    given = locals()
    _words.at_least_one(steps, "--steps")
    if adversarial is not None and (to is not None or threat is not None):
        raise InputError("--adversarial brings its own change: leave out --to and --threat.")
    inputs = _words.shape(shape)
    mean_, std_ = _words.numbers(mean, "--mean"), _words.numbers(std, "--std")
    _words.need("matplotlib", "explain", "explain")

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.core import record
    from unfooled.core.data import DATASETS, load_data, read_classes
    from unfooled.core.threat import parse_threat

    ball = None if threat is None else parse_threat(threat)
    folder = record.check_free(out) if out is not None else record.default_out(given)

    from unfooled import targets
    from unfooled.domains.image import read_image
    from unfooled.evaluate.explained import explain_image, family, siblings, training_examples
    from unfooled.evaluate.preflight import check_threat
    from unfooled.report import example as page

    names = read_classes(classes) if classes is not None else None
    with Live() as live:
        plain = targets.resolve(target, weights=weights, mean=mean_, std=std_, classes=names, device=device)
        model = _words.worn(plain, wear)
        own = data or (targets.ZOO[target].data if target in targets.ZOO else None)
        shown = _words.pointed_into(example, own, data_dir)
        if shown is None and inputs is None and own in DATASETS:
            inputs = DATASETS[own].shape
        first = shown.x if shown else read_image(example, inputs, bounds=model.bounds)[None]
        _words.must_take(model, first)
        if ball is not None:
            check_threat(ball, model.bounds)
        seen = training_examples(own, data_dir=data_dir)
        if seen is None and own is not None and own not in DATASETS:
            seen = load_data(own, data_dir=data_dir, bounds=model.bounds)
        if seen is not None and seen.x.shape[1:] != first.shape[1:]:
            raise InputError(
                f"The example has the shape {tuple(first.shape[1:])}, {seen.name} {tuple(seen.x.shape[1:])}; "
                "give --data of the same kind of images."
            )
        if against:
            others = {t.name: t for t in (targets.resolve(name, device=device) for name in against)}
            for other in others.values():
                if other.fingerprint() == model.fingerprint() and other.name == model.name:
                    raise InputError(f"--against {other.name} is the target itself; give another one.")
                _words.must_take(other, first)
        else:
            others = ({plain.name: plain} if wear else {}) | siblings(plain)
            others |= family(seen, seed) if seen is not None else {}
        live.say(f"explaining {model.name}")
        single, found = explain_image(
            example, model, adversarial=adversarial, data=shown, examples=seen, relatives=others, seed=seed,
            to=to, threat=ball, steps=steps, shape=inputs,
        )  # fmt: skip
        page.write(
            single,
            found,
            folder,
            command=_words.command_line("explain", ("target", "example"), given, without=("out",)),
        )
    lines = [str(single), *found.sentences().values()]
    lines += [f"note: {name}: {why}" for name, why in found.omitted.items()]
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in [*lines, f"page: {folder / 'explanation.html'}"]))
    return 0
