"""`unfooled fool`: images that mean nothing to people and that a target is sure of, one per class."""

import inspect
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unfooled.cli import _words
from unfooled.errors import InputError, UnfooledError, safe_text

if TYPE_CHECKING:
    from torch import Tensor

    from unfooled.cli._progress import Live
    from unfooled.core.target import Target
    from unfooled.fooling import Ascended, Evolution
    from unfooled.fooling.evolve import Generation
    from unfooled.fooling.gallery import Run

WAYS = ("direct", "cppn", "gradient")

_BEGUN = "run.json"
_ASIDE = ("resume", "resuming", "out")  # what decides nothing of the result


def fool(
    target: str = _words.TARGET,
    /,
    *,
    encoding: str = "direct,cppn",
    classes: str = "all",
    generations: int = 200,
    population: int = 256,
    until: float | None = None,
    runs: int = 1,
    regulariser: str = "none",
    steps: int = 200,
    seed: int = 0,
    shape: str | None = None,
    device: str = "auto",
    weights: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    wear: list[str] | None = None,
    classes_file: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    resuming: Annotated[Path | None, Parameter(parse=False)] = None,
) -> int:
    """Make images that mean nothing to people and that the target is sure of, one for each class.

    By evolution, which needs the target's scores alone (Nguyen, Yosinski and Clune 2014): every image competes in
    every class, and each class keeps its best; Ctrl-C keeps what was found. By gradient ascent, which needs gradients.
    Ends with exit code 1 when no image is taken for its class.

    Parameters
    ----------
    target
        A name from `unfooled list targets`, path/to/file.py:callable that returns a torch module or a scikit-learn
        classifier, an ONNX file (model.onnx), the address of an endpoint (https://...), or a timm name.
    encoding
        What an image is made of, one or several: direct (its pixels), cppn (a small network that draws patterns, and
        grows), gradient (no evolution: pixels that climb the target's gradient).
    classes
        all, or the names or numbers of some classes, such as 3,gibbon,ostrich.
    generations
        Generations of an evolution; a resumed run counts those before.
    population
        Images in a generation.
    until
        End an evolution, or a climb, once every class has this confidence, such as 0.9999.
    runs
        Independent runs of each evolution, with the seeds after --seed; their diversity is measured.
    regulariser
        What keeps a climb's images natural: none, l2, tv, blur, fourier or robust.
    steps
        Steps of a climb.
    seed
        Seed of all random choices.
    shape
        Channels, height and width that the target takes, such as 3x224x224 [default: those of a shipped target].
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
    classes_file
        A text file with one class name per line.
    out
        New folder for gallery, curve, archives and numbers [default: runs/<time>-<hash>].
    resume
        Go on with the run in this folder, which was killed or interrupted; all settings are its own, but for a larger
        --generations.
    """
    given = locals()
    if resume is not None:
        known = _resumed(resume, given)
        return fool(known.pop("target"), **known, resuming=resume)
    kinds = _encodings(encoding)
    for value, option in ((population, "--population"), (runs, "--runs"), (steps, "--steps")):
        _words.at_least_one(value, option)
    if generations < 0:
        raise InputError(f"--generations must be at least 0, not {generations}.")
    if until is not None and not 0 < until < 1:
        raise InputError(f"--until is a confidence between 0 and 1, not {until:g}; write 0.9999 for 99.99%.")
    inputs = _words.shape(shape)
    mean_, std_ = _words.numbers(mean, "--mean"), _words.numbers(std, "--std")
    _words.need("matplotlib", "explain", "fool")
    if set(kinds) != {"gradient"}:
        _words.need("ribs", "evolve", "fool")

    _words.load_torch()
    from unfooled.cli._progress import Live
    from unfooled.core import record
    from unfooled.core.data import DATASETS, read_classes

    folder = resuming or (record.check_free(out) if out is not None else record.default_out(_told(given)))

    from unfooled import targets

    names = read_classes(classes_file) if classes_file is not None else None
    with Live() as live:
        model = targets.resolve(target, weights=weights, mean=mean_, std=std_, classes=names, device=device)
        model = _words.worn(model, wear)
        if inputs is None:
            if target not in targets.ZOO:
                raise InputError(
                    f"It is not known what inputs {model.name} takes; give --shape, for example 3x224x224."
                )
            inputs = DATASETS[targets.ZOO[target].data].shape
        chosen = _classes(classes, model, inputs)
        job = _Job(model, inputs, chosen, generations, population, until, regulariser, steps, folder, live)
        if resuming is None:
            about = {
                "format": 1,
                "command": _words.command_line("fool", ("target",), _told(given)),
                "settings": {"words": _told(given)},
            }
            record.write_json(record.new_run(folder) / _BEGUN, about)
        try:
            found = job.all(kinds, range(seed, seed + runs))
        except BaseException as error:
            if resuming is None and not any(p.name != _BEGUN for p in folder.iterdir()):
                (folder / _BEGUN).unlink()
                folder.rmdir()
            elif not isinstance(error, UnfooledError):
                _say_how_to_resume(folder)
            raise
        live.say("drawing")
        lines = _write(folder, found, _words.command_line("fool", ("target",), _told(given)))
    sys.stdout.write("".join(f"{safe_text(line)}\n" for line in lines))
    if job.interrupted:
        _say_how_to_resume(folder)
        return 130
    return 0 if any(float(_sure(run).max()) > 0.5 for run in found) else 1


@dataclass
class _Job:
    """What is to be done for every encoding and seed, and where it is shown and kept."""

    model: "Target"
    shape: tuple[int, ...]
    classes: list[int]
    generations: int
    population: int
    until: float | None
    regulariser: str
    steps: int
    folder: Path
    live: "Live"
    interrupted: bool = False

    def all(self, kinds: Sequence[str], seeds: Sequence[int]) -> "list[Run]":
        """Run every encoding of an evolution with every seed, and one ascent."""
        found: list[Run] = []
        for kind in kinds:
            for seed in seeds if kind != "gradient" else seeds[:1]:
                try:
                    found.append(self.climb(seed) if kind == "gradient" else self.evolve(kind, seed))
                except KeyboardInterrupt:
                    if not found:
                        raise
                    self.interrupted = True
                if self.interrupted:
                    return found
        return found

    def evolve(self, kind: str, seed: int) -> "Evolution":
        from unfooled.core.pictures import percent
        from unfooled.fooling.evolve import ENCODINGS, evolve

        def tell(g: "Generation") -> None:
            rate = g.forward / max(g.seconds, 1e-9)
            said = f"{kind}, seed {seed}: generation {g.number}/{g.of} · {g.sure}/{g.classes} classes above 99.99%"
            said += f" · median {percent(g.median)}, lowest {percent(g.lowest)} · {rate:,.0f} images/s"
            (self.live.say if sys.stderr.isatty() else self.live.note)(said)

        run = evolve(
            self.model, self.shape, encoding=ENCODINGS[kind](self.shape), classes=self.classes,
            generations=self.generations, population=self.population, seed=seed,
            archive=self.folder / f"archive-{kind}-{seed}.safetensors", on_generation=tell, until=self.until,
        )  # fmt: skip
        self.interrupted = run.interrupted
        return run

    def climb(self, seed: int) -> "Ascended":
        from unfooled.fooling import ascend

        self.live.say(f"gradient ascent, {self.regulariser}")
        return ascend(
            self.model, self.shape, self.classes, steps=self.steps, regulariser=self.regulariser,
            until=self.until or 1.0, seed=seed,
        )  # fmt: skip


def _encodings(text: str) -> list[str]:
    kinds = list(dict.fromkeys(word.strip().lower() for word in text.split(",")))
    for kind in kinds:
        if kind not in WAYS:
            raise InputError(f"--encoding {kind!r}: give one or several of {', '.join(WAYS)}.")
    return kinds


def _classes(text: str, model: "Target", shape: tuple[int, ...]) -> list[int]:
    """Return the numbers of the classes named; raises InputError for others, and when the target refuses the shape."""
    import torch

    from unfooled.core.access import Access
    from unfooled.core.ask import Asker
    from unfooled.evaluate.single import resolve_class

    grey = torch.full((1, *shape), sum(model.bounds) / 2)
    _words.must_take(model, grey)
    count = Asker(model, access=Access.SCORES).scores(grey).shape[1]
    if text.strip().lower() == "all":
        return list(range(count))
    named = [word for word in text.split(",") if word.strip()]
    if not named:
        raise InputError("--classes names no class; give all, or names or numbers with commas between them.")
    if len(named) > count:
        raise InputError(f"--classes names {len(named)} classes, but {model.name} has only {count}.")
    return list(dict.fromkeys(resolve_class(word, model.classes, count) for word in named))


def _write(folder: Path, found: "list[Run]", command: str) -> list[str]:
    """Write pictures, images and numbers of the runs, and return what the terminal shows."""
    import numpy as np
    import torch

    from unfooled.core import record
    from unfooled.fooling import Evolution, curves, diversity, gallery

    evolved = [run for run in found if isinstance(run, Evolution)]
    lines = [run.sentence() for run in found]
    spread = []
    for code in dict.fromkeys(run.code for run in evolved):
        runs = [run for run in evolved if run.code == code]
        whole = [run for run in runs if run.classes.equal(runs[0].classes)]
        if len(whole) > 1:
            spread.append(diversity(whole))
            lines.append(spread[-1].sentence())
            record.write_bytes(folder / f"diversity-{spread[-1].encoding}.png", spread[-1].image())
    record.write_bytes(folder / "gallery.png", gallery(*found).image())
    lines.append(f"gallery: {folder / 'gallery.png'}")
    if evolved:
        record.write_bytes(folder / "curve.png", curves(*evolved).image())
        lines.append(f"curve: {folder / 'curve.png'}")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=torch.cat([run.images.float().cpu() for run in found]).numpy(),
        classes=torch.cat([run.classes.cpu() for run in found]).numpy(),
        confidences=torch.cat([_sure(run) for run in found]).numpy(),
        encodings=np.array([_kind(run) for run in found for _ in run.classes]),
    )
    record.write_bytes(folder / "fooled.npz", buffer.getvalue())
    told = [{"encoding": _kind(run), "sentence": run.sentence(), **_cost(run), "rows": run.rows()} for run in found]
    apart = [{"encoding": d.encoding, "sentence": d.sentence(), "rows": d.rows()} for d in spread]
    summary = {"format": 1, "command": command, "runs": told, "diversity": apart}
    record.write_json(folder / "fool.json", summary)
    return [*lines, f"images and numbers: {folder / 'fooled.npz'}, {folder / 'fool.json'}"]


def _kind(run: "Run") -> str:
    from unfooled.fooling import Evolution

    return run.encoding if isinstance(run, Evolution) else "gradient"


def _sure(run: "Run") -> "Tensor":
    """Return the confidence in each image's class, float64 [k]."""
    from unfooled.fooling import Evolution

    return run.confidence if isinstance(run, Evolution) else run.confidences.double().cpu()


def _cost(run: "Run") -> dict[str, Any]:
    """What a run cost, and when an evolution had all classes."""
    from unfooled.fooling import Evolution

    if not isinstance(run, Evolution):
        return {"forward": run.forward, "backward": run.backward}
    return {
        "seed": run.seed,
        "generations": run.generations,
        "population": run.population,
        "generation_of_all_above_99.99%": run.all_sure,
        "forward": run.forward,
        "seconds": round(run.seconds, 2),
        "images_per_second": round(run.images_per_second, 1),
        "interrupted": run.interrupted,
    }


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the result among the arguments, as JSON."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if k not in _ASIDE}


def _resumed(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the run in `folder`; raises InputError where one was given that differs from its own.

    More generations may be asked for.
    """
    from unfooled.core import record

    if given["out"] is not None:
        raise InputError(f"--resume goes on in {folder}: leave out --out.")
    if not (folder / _BEGUN).is_file():
        raise InputError(f"{folder} holds no {_BEGUN}, so there is no run to go on with.")
    settings = record.read_json(folder / _BEGUN).get("settings")
    stored = settings.get("words") if isinstance(settings, dict) else None
    parameters = inspect.signature(fool).parameters
    own = [name for name in parameters if name not in _ASIDE]
    if not isinstance(stored, dict) or set(own) != set(stored) | {"wear"}:
        raise InputError(f"{folder / _BEGUN} does not say how images were made, so it cannot be resumed.")
    stored = {"wear": None} | stored
    known: dict[str, Any] = stored
    for name, value in _told(given).items():
        if value == parameters[name].default or value == stored[name]:
            continue
        if name != "generations" or value < stored[name]:
            raise InputError(
                f"--{name.replace('_', '-')} is {_words.listed(value)} here and {_words.listed(stored[name])} in "
                f"{folder}; "
                "a resumed run keeps its settings: leave it out."
            )
        known = known | {name: value}
    return known | {k: Path(known[k]) for k in ("weights", "classes_file") if known[k] is not None}


def _say_how_to_resume(folder: Path) -> None:
    _words.say_how_to_go_on(shlex.join(["unfooled", "fool", "--resume", str(folder)]))
