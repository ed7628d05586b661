"""The robust speed-run: how robust a CIFAR-10 network gets within a minute and within ten, scored honestly.

python -m benchmarks.speedrun [--recipe n-fgsm ...] [--net resnet18] [--seconds 60 480] [--seeds 0 1 2]
                              [--scale full] [--device auto] [--minutes 8]

trains, scores and writes the table; `train`, `score` and `write` as the first word do one of these alone, `draw` draws
the curves of the table. Training and
scoring end after `--minutes` and the same command goes on where it stopped, from what lies under runs/speedrun. On a
machine that takes 64 MiB at a time: `pack` here, bring runs/speedrun/part1 and runs/speedrun/part2 there one after the
other, then `train`, then `score`.

Training is judged by the seconds of its steps alone: loading, planning and scoring are not counted. They are wall
seconds on a GPU, and CPU seconds of one thread elsewhere. The last 5,000 training images are never trained on.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import unfooled as uf
from benchmarks import results
from unfooled import harden
from unfooled.core import record
from unfooled.core.augment import augment
from unfooled.core.data import DATASETS
from unfooled.core.explanation import COLOURS, Explanation
from unfooled.core.fit import Recipe, Training
from unfooled.errors import Diverged
from unfooled.stats import mean_interval
from unfooled.targets.residual import cifar_cnn, preact_resnet18

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = results.SCRATCH.parent / "speedrun"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "harden-speedrun.png"
THREAT = uf.linf(8 / 255)
NETS: dict[str, Callable[[], nn.Module]] = {"resnet18": preact_resnet18, "small": cifar_cnn}
HELD = 5000  # training images at the end that no scale trains on
POINTS = 4  # of the curve of one training
PIECE = 1000  # rows scored at once and then written down
PART = 64 * 2**20  # bytes
RAMP = 0.1  # share of all steps over which the radius grows
SLACK = 1.05  # seconds beyond the budget, as a factor, after which training stops where it is

PUBLISHED = {
    "Fast AT (Wong et al. 2020), ResNet-18, about 6 minutes on one GPU": (0.4321, "clean 86.06%", "arXiv:2001.03994"),
    "N-FGSM, ResNet-18, 100 epochs, 32 minutes": (0.4777, "clean 78.59%", "arXiv:2604.22853"),
    "GradAlign, ResNet-18, 100 epochs, 94 minutes": (0.4799, "clean 79.39%", "arXiv:2604.22853"),
    "PGD-10 training with weight averages, ResNet-18, 100 epochs, 117 minutes": (
        0.5049, "clean 82.36%", "arXiv:2604.22853"
    ),
}  # fmt: skip
"""AutoAttack's robust accuracy on all 10,000 test images at Linf 8/255, beside which ours are shown."""


@dataclass(frozen=True)
class Scale:
    """How many images are trained on, and how many of the held-out and of the test images are scored."""

    learned: int
    held: int
    tested: int


SCALES = {"full": Scale(45_000, HELD, 1000), "small": Scale(10_000, 200, 200)}


@dataclass(frozen=True)
class Images:
    """uint8 images [n, 3, 32, 32] and labels int64 [n]: to train on, and by name to score on."""

    x: Tensor
    y: Tensor
    scored: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, scale: Scale) -> Images:
        """Load CIFAR-10, from the packed parts where they were brought."""
        folder = joined(RUNS)
        train = uf.load_data("cifar10", split="train", data_dir=folder)
        test = uf.load_data("cifar10", split="test", data_dir=folder, limit=scale.tested)
        held = train.x[-HELD:][: scale.held], train.y[-HELD:][: scale.held]
        return cls(
            whole(train.x[:-HELD][: scale.learned]), train.y[:-HELD][: scale.learned],
            {"test": (whole(test.x), test.y), "held": (whole(held[0]), held[1])},
        )  # fmt: skip


def whole(x: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8."""
    return (x * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Job:
    """One training: a way of `harden.WAYS`, a network, a budget in seconds, a seed, a scale."""

    recipe: str
    net: str
    budget: float
    seed: int
    scale: str

    @property
    def folder(self) -> Path:
        """Where its plan, state, points and scores lie."""
        return RUNS / f"{self.scale}-{self.net}-{self.recipe}-{self.budget:g}s-{self.seed}"

    def module(self) -> nn.Module:
        """Return the network with the seed's initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return NETS[self.net]()


def settings(job: Job, epochs: int, device: torch.device) -> Recipe:
    """Return how a job is trained; on a GPU with larger batches."""
    way = harden.way(job.recipe)
    batch = 500 if device.type == "cuda" else 250
    common: dict[str, Any] = {"lr": 0.2, "weight_decay": 5e-4, "optimizer": "sgd", "ema": 0.995, "precision": "bf16"}
    return Recipe(
        **{"epochs": epochs, "batch_size": batch, "seed": job.seed, "channels_last": True, **common, **way.recipe}
    )


def training(job: Job, images: Images, recipe: Recipe, device: torch.device, rows: int | None = None) -> Training:
    """Return the job's training before its first step, on the first `rows` images or on all of them."""
    x, y = images.x[:rows], images.y[:rows]
    steps = recipe.epochs * recipe.replays * math.ceil(len(x) / recipe.batch_size)
    objective = harden.way(job.recipe).objective(THREAT, seed=job.seed, ramp=round(RAMP * steps))
    return Training(job.module(), x, y, objective, recipe, augment=augment("flips+crops(2)"), device=device)


def clock(device: torch.device) -> float:
    """Return the seconds that are counted on this device."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def fitting(job: Job, images: Images, device: torch.device) -> int:
    """Return how many epochs fit into the job's seconds, at least one, by timing a few steps of a trial."""
    recipe = settings(job, 2, device)
    rows = min(len(images.x), recipe.batch_size * (20 if device.type == "cuda" else 4))
    trial = training(job, images, recipe, device, rows)
    trial.run_epoch()  # the first is slower
    begun = clock(device)
    trial.run_epoch()
    return max(1, int(job.budget / ((clock(device) - begun) * len(images.x) / rows)))


def train(job: Job, images: Images, device: torch.device, until: float = math.inf) -> bool:
    """Train until the job is done or `time.monotonic()` passes `until`, and return whether it is done.

    A training whose loss is no longer finite is done, and scored at the points that it passed.

    After every epoch the whole state is written, at the points of the curve also the weights; what lies in the job's
    folder is gone on from.
    """
    index = job.folder / "training.json"
    job.folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = record.read_json(index) if index.exists() else {}
    if not known:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
        epochs = fitting(job, images, device)
        known = {"job": asdict(job), "epochs": epochs, "device": name, "spent": 0.0, "points": [], "done": False}
    run = training(job, images, settings(job, known["epochs"], device), device)
    if "state" in known:
        run.restore(load_file(job.folder / known["state"]), known["plain"])
    points = {math.ceil(known["epochs"] * k / POINTS): k for k in range(1, POINTS + 1)}
    while not known["done"]:
        if time.monotonic() > until:
            return False
        begun = clock(device)
        try:
            done = run.run_epoch()
        except Diverged as error:  # what was reached before is scored all the same
            record.write_json(index, known | {"done": True, "diverged": str(error)})
            return True
        known["spent"] += clock(device) - begun
        known["done"] = done.epoch == known["epochs"] or known["spent"] > SLACK * job.budget
        if done.epoch in points or known["done"]:
            weights = {k: v.detach().cpu().contiguous() for k, v in run.evaluated.state_dict().items()}
            record.write_bytes(job.folder / f"point-{done.epoch}.safetensors", save(weights))
            point = points.get(done.epoch, POINTS) if not known["done"] else POINTS
            known["points"].append({"point": point, "epoch": done.epoch, "seconds": known["spent"], "loss": done.loss})
        tensors, known["plain"] = run.state()
        old, known["state"] = known.get("state"), f"state-{done.epoch}.safetensors"
        record.write_bytes(job.folder / known["state"], save(tensors))
        record.write_json(index, known)
        if old:
            (job.folder / old).unlink(missing_ok=True)
    return True


def score(
    job: Job, images: Images, device: torch.device, until: float = math.inf, suite: str = "standard"
) -> Iterator[dict[str, Any]]:
    """Measure a finished job's points that were not measured yet, the last first; yield each piece once it is written.

    The last point is measured on test and held-out images, the others on test images alone.
    """
    index = job.folder / "training.json"
    known: dict[str, Any] = record.read_json(index) if index.exists() else {"done": False}
    points: list[dict[str, Any]] = known["points"] if known["done"] else []
    for at, point in enumerate(reversed(points)):
        for name, begin, rows in pieces(images, ("test", "held") if at == 0 else ("test",)):
            path = job.folder / f"score-{point['epoch']}-{name}-{begin}.json"
            if path.exists():
                continue
            if time.monotonic() > until:
                return
            module = job.module()
            module.load_state_dict(load_file(job.folder / f"point-{point['epoch']}.safetensors"))
            x, y = (part.to(device) for part in rows)
            begun = clock(device)
            found = uf.evaluate(module.eval().to(device), x.float() / 255, y, THREAT, suite=suite, seed=job.seed)
            piece = {
                **asdict(job), **point, "device": known["device"],
                "images": name, "suite": suite, "status": found.status,
                "clean": [s != uf.Status.MISCLASSIFIED for s in found.outcome],
                "robust": found.standing().tolist(), "scoring_seconds": clock(device) - begun,
            }  # fmt: skip
            record.write_json(path, piece)
            yield piece


def pieces(images: Images, names: Iterable[str]) -> Iterator[tuple[str, int, tuple[Tensor, Tensor]]]:
    """Yield name, first row and the rows of every piece that is scored at once."""
    for name in names:
        x, y = images.scored[name]
        for begin in range(0, len(x), PIECE):
            yield name, begin, (x[begin : begin + PIECE], y[begin : begin + PIECE])


@dataclass(frozen=True)
class Share:
    """What became of the same images in one training a seed: the share that stands, averaged over seeds."""

    by_seed: dict[int, list[float]]

    @property
    def ours(self) -> float:
        """The mean over seeds and images."""
        return fmean(map(fmean, self.by_seed.values()))

    def entry(self) -> dict[str, Any]:
        """Return the fields of a table's row; the interval covers the choice of images, not of seeds."""
        an_image = [fmean(each) for each in zip(*self.by_seed.values(), strict=True)]
        return {
            "ours": self.ours, "unit": "%", "n": len(an_image), "interval": list(mean_interval(an_image)),
            "by_seed": {str(seed): fmean(each) for seed, each in self.by_seed.items()},
        }  # fmt: skip


def scores(folder: Path) -> list[dict[str, Any]]:
    """Return all pieces that were scored, in the order of trainings, points and rows."""
    found = [
        record.read_json(path) | {"begin": int(path.stem.split("-")[-1])} for path in folder.glob("*/score-*.json")
    ]
    return sorted(found, key=lambda p: (*_group(p), p["point"], p["images"], p["seed"], p["begin"]))


def _group(piece: dict[str, Any]) -> tuple[str, str, str, float]:
    return piece["scale"], piece["net"], piece["recipe"], piece["budget"]


def rows(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield case and entry for every training's curve and end, from the pieces that all its seeds have."""
    for (scale, net, recipe, budget), parts in groupby(found, _group):
        mine = list(parts)
        for (point, images), some in groupby(mine, lambda p: (p["point"], p["images"])):
            here = list(some)
            seconds, verdicts = fmean(p["seconds"] for p in here), sorted({p["status"] for p in here})
            clean, robust = (Share(_by_seed(here, kind)) for kind in ("clean", "robust"))
            unit = "CPU seconds" if here[0]["device"].startswith("CPU") else "seconds"
            said = f"{net}, {recipe}, after {seconds:.0f} of {budget:g} {unit}, {images} images"
            about = {
                "note": "; ".join([
                    f"{SCALES[scale].learned:,} training images", f"seeds {', '.join(map(str, clean.by_seed))}",
                    f"point {point} of {POINTS}, epochs {' and '.join(map(str, sorted({p['epoch'] for p in here})))}",
                    here[0]["device"], f"verdict {' and '.join(verdicts)}",
                    *(["small scale, not comparable with what is published"] if scale == "small" else []),
                ]),
                "published": None, "source": "", "scale": scale, "net": net, "recipe": recipe, "budget": budget,
                "point": point, "images": images, "seconds": seconds,
                "loss": fmean(p["loss"] for p in here), "suite": here[0]["suite"], "threat": repr(THREAT),
            }  # fmt: skip
            case = f"{scale}, {net}, {recipe}, {budget:g}, {point}, {images}"
            yield f"{case}, clean", {"what": f"clean accuracy: {said}"} | clean.entry() | about
            yield f"{case}, robust", {"what": f"robust accuracy, at most: {said}"} | robust.entry() | about


def _by_seed(pieces: list[dict[str, Any]], kind: str) -> dict[int, list[float]]:
    """Return every seed's rows in order; seeds with fewer pieces than another are left out until they have all."""
    by: dict[int, list[float]] = {}
    for piece in pieces:
        by.setdefault(piece["seed"], []).extend(map(float, piece[kind]))
    most = max(map(len, by.values()))
    return {seed: each for seed, each in by.items() if len(each) == most}


def write(folder: Path = RUNS) -> None:
    """Write what was scored so far into the table, beside what is published."""
    for what, (robust, note, source) in PUBLISHED.items():
        published = {"what": f"robust accuracy, AutoAttack: {what}", "published": robust, "ours": None, "unit": "%"}
        results.write("speedrun", what, published | {"n": 0, "note": note, "source": source})
    for index in folder.glob("*/training.json"):
        known = record.read_json(index)
        if "diverged" in known:
            results.write("speedrun", f"{index.parent.name}, diverged", {
                "what": f"training diverged: {index.parent.name}", "published": None, "ours": "no network", "unit": "",
                "n": 1, "note": known["diverged"], "source": "",
            })  # fmt: skip
    for case, entry in rows(scores(folder)):
        results.write("speedrun", case, entry)


@dataclass(frozen=True)
class Race(Explanation):
    """Robust accuracy on test images against the seconds of training, a curve a recipe; entries of the table."""

    entries: tuple[dict[str, Any], ...]

    size: ClassVar[tuple[float, float]] = (8.0, 4.2)

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict a point."""
        kept = ("net", "recipe", "budget", "point", "seconds", "ours", "interval", "n")
        return [{name: entry[name] for name in kept} for entry in self.entries]

    def sentence(self) -> str:
        """Return which recipe is ahead at the end."""
        first = max(self.entries, key=lambda entry: float(entry["ours"]))
        return f"{first['recipe']} is ahead: {first['ours']:.1%} after {first['seconds']:.0f} seconds."

    def draw(self, figure: Figure) -> None:
        """Draw a curve a recipe; the bars are 95% intervals over the images."""
        axes = figure.subplots()
        for colour, name in zip(COLOURS, dict.fromkeys(entry["recipe"] for entry in self.entries), strict=False):
            mine = sorted((e for e in self.entries if e["recipe"] == name), key=lambda e: float(e["seconds"]))
            shares = [100 * e["ours"] for e in mine]
            low, high = zip(*([100 * v for v in e["interval"]] for e in mine), strict=True)
            away = [
                [s - v for s, v in zip(shares, low, strict=True)],
                [v - s for s, v in zip(shares, high, strict=True)],
            ]
            axes.errorbar(
                [e["seconds"] for e in mine], shares, away, color=colour, label=name, marker="o", capsize=2, lw=1.5
            )
        axes.set(xlabel="seconds of training", ylabel=f"robust accuracy at {THREAT!r}, %", ylim=(0, None))
        axes.legend(frameon=False)


def race(scale: str, net: str) -> Race:
    """Return the curves of one scale and network, as they stand in the table."""
    kept = [
        entry for case, entry in results.read("speedrun").items()
        if case.startswith(f"{scale}, {net}, ") and case.endswith(", test, robust")
    ]  # fmt: skip
    return Race(tuple(kept))


def pack(folder: Path = RUNS) -> list[Path]:
    """Copy the files of CIFAR-10 into `part1` and `part2` of a folder, each below 64 MiB; return the two folders.

    Raises InputError when a file is missing or a part becomes too large.
    """
    info = DATASETS["cifar10"]
    assert info.file is not None
    names = (*info.file["train"], *info.file["test"])
    parts = [folder / "part1", folder / "part2"]
    for part, some in zip(parts, (names[:3], names[3:]), strict=True):
        part.mkdir(parents=True, exist_ok=True)
        for name in some:
            source = data_folder() / name
            if not source.is_file():
                raise uf.InputError(f"{name} is not in {str(data_folder())!r}; set UNFOOLED_DATA to where it lies.")
            shutil.copyfile(source, part / name)
        size = sum(file.stat().st_size for file in part.iterdir())
        if size > PART:
            raise uf.InputError(
                f"{part.name} holds {size:,} bytes, more than the {PART:,} that can be brought at once."
            )
    return parts


def joined(folder: Path) -> Path | None:
    """Return one folder with the files of all parts that were brought, None where none was."""
    files = sorted(folder.glob("part*/*.npz"))
    if not files:
        return None
    whole = folder / "data"
    whole.mkdir(exist_ok=True)
    for file in files:
        if not (whole / file.name).exists():
            (whole / file.name).hardlink_to(file)
    return whole


def data_folder() -> Path:
    """Return where named data sets lie."""
    return Path(os.environ.get("UNFOOLED_DATA", "../shared/data"))


def work(asked: argparse.Namespace) -> None:
    """Train and score what was asked for, as far as the minutes reach, and write down every score."""
    until = time.monotonic() + 60 * asked.minutes
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if asked.device == "auto" else asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    images = Images.of(SCALES[asked.scale])
    for budget, seed, recipe in product(asked.seconds, asked.seeds, asked.recipe):
        job = Job(recipe, asked.net, budget, seed, asked.scale)
        if asked.command != "score":
            train(job, images, device, until)
        if asked.command != "train":
            for _ in score(job, images, device, until):
                write()


def main() -> None:
    """Do what the command line says."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("command", nargs="?", default="all", choices=("all", "pack", "train", "score", "write", "draw"))
    read.add_argument("--recipe", nargs="+", default=["n-fgsm"], choices=tuple(harden.WAYS))
    read.add_argument("--net", default="resnet18", choices=tuple(NETS))
    read.add_argument("--seconds", nargs="+", type=float, default=[60.0])
    read.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    read.add_argument("--scale", default="full", choices=tuple(SCALES))
    read.add_argument("--device", default="auto")
    read.add_argument("--minutes", type=float, default=8.0, help="after which this command begins nothing new")
    asked = read.parse_args()
    if asked.command == "pack":
        pack()
    elif asked.command == "write":
        write()
    elif asked.command == "draw":
        PICTURE.write_bytes(race(asked.scale, asked.net).image())
    else:
        work(asked)


if __name__ == "__main__":
    main()
