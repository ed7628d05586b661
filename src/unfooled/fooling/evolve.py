"""Fooling images by evolution: MAP-Elites with one niche per class, pixels or pattern networks as the genome.

Nguyen, Yosinski and Clune 2014, Deep neural networks are easily fooled, arXiv:1412.1897, with the archive of pyribs.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..core import record
from ..core.access import Access
from ..core.ask import Asker, as_logits, confidences
from ..core.explanation import COLOURS, SOFT, Explanation
from ..core.target import Target, as_target
from ..errors import InputError, MissingExtra, StorageError
from ..parametrise import cppn
from .gallery import draw_curves, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EncodingName = Literal["direct", "cppn"]

SURE = 0.9999
"""The confidence of the original's headline."""

_FORMAT = 1


@dataclass(frozen=True)
class Direct:
    """The genome is the image: pixels U[0, 1] at first; a share `rate` of them moves, halved every `halving` steps.

    Moves are polynomial with distribution index `strength` (Deb and Goyal 1996), cut off at 0 and 1.
    """

    name: ClassVar[str] = "direct"

    shape: tuple[int, ...]
    rate: float = 0.1
    halving: int = 1000
    strength: float = 15.0
    dtype: torch.dtype = torch.float32

    def first(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n random genomes [n, g]."""
        return torch.rand(n, math.prod(self.shape), generator=generator, device=generator.device)

    def mutated(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        """Return one child of each genome [n, g]."""
        rate = self.rate * 0.5 ** (generation // self.halving)
        hit = torch.rand(genomes.shape, generator=generator, device=genomes.device) < rate
        luck = torch.rand(int(hit.sum()), generator=generator, device=genomes.device)
        children = genomes.clone()
        children[hit] = (children[hit] + polynomial(luck, self.strength)).clamp(0, 1)
        return children

    def images(self, genomes: Tensor) -> Tensor:
        """Return what the genomes [n, g] look like, [n, *shape] in [0, 1]."""
        return genomes.reshape(-1, *self.shape)


@dataclass(frozen=True)
class Pattern:
    """The genome is a pattern-producing network that starts without hidden nodes and grows to `hidden` of them.

    Three channels are drawn as hue, saturation and value, any other number as themselves.
    """

    name: ClassVar[str] = "cppn"

    shape: tuple[int, ...]
    hidden: int = 16
    growth: cppn.Growth = field(default_factory=cppn.Growth)
    dtype: torch.dtype = torch.float64

    def first(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n random genomes [n, g]."""
        return cppn.first(n, self.hidden, self.shape[0], generator, self.growth).packed()

    def mutated(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        """Return one child of each genome [n, g]; the rates stay the same."""
        return cppn.mutated(cppn.unpacked(genomes, self.hidden, self.shape[0]), generator, self.growth).packed()

    def images(self, genomes: Tensor) -> Tensor:
        """Return what the genomes [n, g] look like, [n, *shape] in [0, 1]."""
        return cppn.pictures(cppn.unpacked(genomes, self.hidden, self.shape[0]), *self.shape[1:])


Encoding: TypeAlias = Direct | Pattern
"""How a genome, a row of numbers, becomes an image, and how it changes."""

ENCODINGS: dict[str, type[Direct] | type[Pattern]] = {kind.name: kind for kind in (Direct, Pattern)}


def polynomial(luck: Tensor, strength: float) -> Tensor:
    """Return the steps in (-1, 1) of polynomial mutation for uniform `luck` of any shape (Deb and Goyal 1996)."""
    down = (2 * luck).pow(1 / (strength + 1)) - 1
    return torch.where(luck < 0.5, down, 1 - (2 * (1 - luck)).pow(1 / (strength + 1)))


@dataclass(frozen=True)
class Generation:
    """Where an evolution stands: classes whose elite is sure (`SURE`), and the elites' confidences.

    `forward` rows were sent through the target so far, in `seconds`.
    """

    number: int
    of: int
    lowest: float
    median: float
    highest: float
    sure: int
    classes: int
    forward: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Evolution(Explanation):
    """The best image found for each class, k classes in all; "found" is the generation that an elite is from.

    Attributes:
        target: its name.
        code: the encoding with its settings.
        classes: numbers of the classes, int64 [k].
        names: their names.
        images: float32 [k, *shape] within the target's bounds.
        log_odds: ln p/(1 - p) of the confidence p in the image's class, float64 [k]; tells 1 - 1e-9 from 1 - 1e-12.
        found: int64 [k].
        genomes: [k, g].
        curve: log-odds of the elites after each generation, float64 [generations + 1, 3]: lowest, median, highest.
        sure: number of classes with confidence of at least 99.99% after each generation, int64 [generations + 1].
        control: the target's highest confidence, whatever the class, in each image of generation 0, float64 [p].
        population: children in a generation.
        seed: of all luck.
        forward: rows sent through the target.
        seconds: wall time of the search.
        interrupted: whether it ended before its last generation by Ctrl-C.
    """

    target: str
    code: Encoding
    classes: Tensor
    names: tuple[str, ...]
    images: Tensor
    log_odds: Tensor
    found: Tensor
    genomes: Tensor
    curve: Tensor
    sure: Tensor
    control: Tensor
    bounds: tuple[float, float]
    population: int
    seed: int
    forward: int
    seconds: float
    interrupted: bool = False

    @property
    def encoding(self) -> str:
        """The name of the encoding: "direct" or "cppn"."""
        return self.code.name

    @property
    def confidence(self) -> Tensor:
        """The confidence of the target in each image's class, float64 [k]."""
        return self.log_odds.sigmoid()

    @property
    def generations(self) -> int:
        """How many generations followed the first."""
        return len(self.curve) - 1

    @property
    def all_sure(self) -> int | None:
        """The generation from which on every class has a confidence of at least 99.99%, None where there is none."""
        done = (self.sure == len(self.classes)).nonzero()
        return int(done[0]) if len(done) else None

    @property
    def images_per_second(self) -> float:
        """Images bred, drawn and judged in a second."""
        return self.forward / max(self.seconds, 1e-9)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per class."""
        columns = (self.classes, self.confidence, self.log_odds, self.found)
        return [
            {"class": k, "name": name, "confidence": p, "log_odds": odds, "generation": g, "encoding": self.encoding}
            for name, (k, p, odds, g) in zip(self.names, zip(*(c.tolist() for c in columns), strict=True), strict=True)
        ]

    def sentence(self) -> str:
        """Return the median and lowest confidence, beside that in the images of generation 0."""
        lowest, median, _ = (share(float(v)) for v in self.curve[-1])
        return (
            f"After {self.generations} generations of {self.population} images ({self.encoding} encoding) "
            f"{self.target} is at least {SURE:.2%} sure of the images of {int(self.sure[-1])} of {len(self.classes)} "
            f"classes (median {median}, lowest {lowest}); in the {len(self.control)} random images of generation 0 the "
            f"median of its highest confidence was {float(self.control.median()):.1%}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the confidences over the generations."""
        draw_curves(figure, [self])

    def drawn(self, height: int, width: int) -> Tensor:
        """Return the images [k, c, height, width] that the same networks draw; raises InputError for pixels."""
        if not isinstance(self.code, Pattern):
            raise InputError("Pixels have one size; evolve with encoding='cppn' for images that can be drawn larger.")
        low, high = self.bounds
        return low + (high - low) * replace(self.code, shape=(self.code.shape[0], height, width)).images(self.genomes)


def evolve(
    target: Target | Callable[..., object],
    shape: Sequence[int],
    *,
    encoding: EncodingName | Encoding = "direct",
    classes: Sequence[int] | None = None,
    generations: int = 200,
    population: int = 256,
    seed: int = 0,
    archive: str | Path | None = None,
    on_generation: Callable[[Generation], None] | None = None,
    until: float | None = None,
    batch_size: int | str = "auto",
) -> Evolution:
    """Evolve one image per class that the target is as sure of as possible; needs its scores, no gradient.

    Every image competes in every class: of a generation the best of each class is offered to that class's niche.
    Elites are compared by log-odds in float64, so that confidences beyond 99.99% still differ. The control is the
    target's highest confidence in the random images of generation 0.

    Args:
        target: a Target, or a module or callable.
        shape: of one input, such as (1, 28, 28).
        encoding: "direct" (pixels), "cppn" (pattern networks; inputs [c, h, w] only), or one with its settings.
        classes: numbers of the classes to evolve; None for all.
        generations: how many follow the random first one, all sessions of an archive together.
        population: images a generation.
        seed: of all luck.
        archive: a file to keep the state in, every few seconds and at the end. Where it exists the search goes on from
            there, and ends with the same bits as one that was never disturbed.
        on_generation: called after each generation.
        until: stop when every class has at least this confidence.
        batch_size: rows a call of the target, or "auto".

    Returns:
        The elites. Ctrl-C ends the search early, `interrupted`, unless no generation is finished.

    Raises:
        InputError: arguments make no sense, or the archive is one of other arguments.
        MissingExtra: pyribs is not installed.
        StorageError: the archive cannot be written.
    """
    if population < 1 or generations < 0:
        raise InputError(
            f"population must be at least 1 and generations at least 0, not {population} and {generations}."
        )
    if until is not None and not 0 < until < 1:
        raise InputError(f"until is a confidence between 0 and 1, not {until:g}.")
    search = _Search(as_target(target), _code(encoding, shape), classes, population, seed, batch_size)
    path = None if archive is None else Path(archive)
    if path is not None and not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for the archive; make it first.")
    if path is not None and path.exists():
        search.read(path)
    enough = math.inf if until is None else math.log(until) - math.log1p(-until)
    due, interrupted = time.monotonic() + _SAVE_EVERY, False
    try:
        while search.done < generations and not search.lowest >= enough:
            search.step()
            if on_generation is not None:
                on_generation(search.standing(generations))
            if path is not None and time.monotonic() > due:
                begun = time.monotonic()
                search.write(path)
                due = time.monotonic() + _SAVE_EVERY + 20 * (time.monotonic() - begun)  # a large one less often
    except KeyboardInterrupt:
        interrupted = True
        if search.done < 0:
            raise
    finally:
        if path is not None and search.done >= 0:
            search.write(path)
    return search.evolution(interrupted=interrupted)


def log_odds(scores: Tensor) -> Tensor:
    """Return ln p/(1 - p) for the confidence p in each class, float64 [b, k], exact however near p is to 0 or 1.

    Scores that make no sense (NaN) give minus infinity.
    """
    logits = as_logits(scores.double())
    whole = logits.logsumexp(1, keepdim=True)
    others = whole + torch.log1p(-(logits - whole).exp())
    best = logits.argmax(1, keepdim=True)  # here the difference above has no digits left
    others.scatter_(1, best, logits.scatter(1, best, -math.inf).logsumexp(1, keepdim=True))
    return (logits - others).nan_to_num(nan=-math.inf, posinf=torch.finfo(torch.float64).max, neginf=-math.inf)


class _Search:
    """One evolution under way: the archive of pyribs, the generator, and what is counted."""

    def __init__(
        self,
        target: Target,
        code: Encoding,
        classes: Sequence[int] | None,
        population: int,
        seed: int,
        batch_size: int | str,
    ) -> None:
        self.asker = Asker(target, access=Access.SCORES, batch_size=batch_size)
        self.target, self.code, self.population, self.seed = target, code, population, seed
        self.wanted = None if classes is None else list(classes)
        self.generator = torch.Generator(target.device).manual_seed(seed % 2**63)
        self.luck = self.generator.get_state()
        self.done, self.forward, self.seconds = -1, 0, 0.0
        self.curve: list[list[float]] = []
        self.sure: list[int] = []
        self.categories = _categorical()
        self.classes: list[int] = []

    @property
    def lowest(self) -> float:
        """The log-odds of the class that is furthest behind."""
        return self.curve[-1][0] if self.curve else -math.inf

    def step(self) -> None:
        """Breed, draw and judge one generation; what is interrupted before its end never was."""
        begun = time.monotonic()
        self.generator.set_state(self.luck)
        if self.done < 0:
            children = self.code.first(self.population, self.generator)
        else:
            children = self.code.mutated(self._parents(), self.done, self.generator)
        low, high = self.target.bounds
        asked = self.asker.forward
        scores = self.asker.scores(low + (high - low) * self.code.images(children))
        if self.done < 0:
            self._open(scores)
        odds, rows = log_odds(scores)[:, self.classes].max(0)  # [k]
        if not bool((torch.maximum(odds, self.elites) > -math.inf).any()):
            raise InputError(f"{self.target.name} answers random images with no finite score, so none can be best.")
        better = (odds > self.elites).nonzero()[:, 0]
        offered, worth = children[rows[better]].cpu().numpy(), odds[better]
        with _held_back():
            self._offer(better, offered, worth, np.full(len(better), self.done + 1))
            self.done += 1
            self.luck = self.generator.get_state()
            self.forward += self.asker.forward - asked
            self.seconds += time.monotonic() - begun
            self.curve.append(_low_mid_high(self.elites.cpu()))
            self.sure.append(int((self.elites >= _SURE_ODDS).sum()))

    def _open(self, scores: Tensor) -> None:
        """Make the niches, once it is known how many classes there are."""
        count = scores.shape[1]
        classes = list(range(count)) if self.wanted is None else self.wanted
        for k in classes:
            if not 0 <= k < count:
                raise InputError(f"There is no class {k}; {self.target.name} has the classes 0 to {count - 1}.")
        if not classes or len(set(classes)) < len(classes):
            raise InputError(f"classes must be different numbers, at least one, not {classes}.")
        self._niches(classes, count)
        self.control = confidences(scores).amax(1).double().cpu()

    def _niches(self, classes: list[int], count: int) -> int:
        """Make the niches of classes out of `count` and return the length of a genome."""
        width = self.code.first(1, torch.Generator(self.target.device)).shape[1]
        self.classes, self.count = classes, count
        self.archive = self.categories(
            solution_dim=width,
            categories=[classes],
            solution_dtype=_numpy(self.code.dtype),
            objective_dtype=np.float64,
            measures_dtype=np.int64,
            extra_fields={"generation": ((), np.int64)},
        )
        self.elites = torch.full((len(classes),), -math.inf, dtype=torch.float64, device=self.target.device)
        return width

    def _offer(self, niches: Tensor, genomes: np.ndarray, worth: Tensor, generation: np.ndarray) -> None:
        # at most one a niche: `add` would compile a kernel for clashes within a batch, three seconds a process
        for niche, genome, odds, born in zip(niches.tolist(), genomes, worth.tolist(), generation, strict=True):
            self.archive.add_single(genome, odds, [self.classes[niche]], generation=born)
        self.elites[niches] = worth

    def _parents(self) -> Tensor:
        filled = (self.elites > -math.inf).nonzero()[:, 0]
        drawn = torch.randint(
            len(filled), (self.population,), generator=self.generator, device=self.generator.device
        )  # fmt: skip
        genomes = self._elite(filled[drawn])["solution"]
        return torch.from_numpy(genomes).to(self.target.device)

    def _elite(self, niches: Tensor) -> dict[str, np.ndarray]:
        _, held = self.archive.retrieve(np.array(self.classes)[niches.cpu().numpy()][:, None])
        return dict(held)

    def standing(self, of: int) -> Generation:
        """Return where the search stands, for those who watch."""
        low, middle, high = (float(torch.tensor(v).sigmoid()) for v in self.curve[-1])
        return Generation(
            self.done, of, low, middle, high, self.sure[-1], len(self.classes), self.forward, self.seconds
        )  # fmt: skip

    def evolution(self, *, interrupted: bool) -> Evolution:
        """Return what was found, on the CPU."""
        filled = (self.elites > -math.inf).nonzero()[:, 0]
        held = self._elite(filled)
        classes = torch.tensor(self.classes)[filled.cpu()]
        genomes = torch.from_numpy(held["solution"])
        low, high = self.target.bounds
        drawn = [self.code.images(part.to(self.target.device)).cpu() for part in genomes.split(64)]
        return Evolution(
            target=self.target.name,
            code=self.code,
            classes=classes,
            names=tuple(map(self.target.class_name, classes.tolist())),
            images=low + (high - low) * torch.cat(drawn),
            log_odds=torch.from_numpy(held["objective"]),
            found=torch.from_numpy(held["generation"]),
            genomes=genomes,
            curve=torch.tensor(self.curve, dtype=torch.float64),
            sure=torch.tensor(self.sure),
            control=self.control,
            bounds=self.target.bounds,
            population=self.population,
            seed=self.seed,
            forward=self.forward,
            seconds=self.seconds,
            interrupted=interrupted,
        )

    def _settings(self) -> dict[str, Any]:
        """What two searches must have in common to be one."""
        return {
            "target": f"{self.target.name} ({self.target.fingerprint()[:16]})",
            "encoding": repr(self.code),
            "shape": list(self.code.shape),
            "population": self.population,
            "seed": self.seed,
            "device": self.target.device.type,
        }

    def write(self, path: Path) -> None:
        """Write all that the search needs to go on, one whole file."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        filled = (self.elites > -math.inf).nonzero()[:, 0]
        held = self._elite(filled)
        tensors = {
            "niche": filled.cpu(),
            "genome": torch.from_numpy(held["solution"]),
            "log_odds": torch.from_numpy(held["objective"]),
            "generation": torch.from_numpy(held["generation"]),
            "curve": torch.tensor(self.curve, dtype=torch.float64),
            "sure": torch.tensor(self.sure),
            "control": self.control,
            "luck": self.luck,
        }
        about = {"format": _FORMAT, "settings": self._settings(), "classes": self.classes, "count": self.count}
        about |= {"done": self.done, "forward": self.forward, "seconds": self.seconds}
        try:
            with record.whole_file(path) as temporary:
                save_file(tensors, temporary, metadata={"evolution": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise StorageError(f"The archive {path} could not be written: {error}.") from error

    def read(self, path: Path) -> None:
        """Go on from a file of `write`; raises InputError when it is no such file or one of other settings."""
        about, tensors = _opened(path)
        for name, here in self._settings().items():
            there = about["settings"].get(name)
            if here != there:
                raise InputError(
                    f"The archive {path} has another {name}: {there} there, {here} here; give the same or a new file."
                )
        if self.wanted is not None and self.wanted != about["classes"]:
            raise InputError(f"The archive {path} has other classes: {about['classes']}, not {self.wanted}.")
        width = self._niches(about["classes"], about["count"])
        niches, genomes, worth = (tensors[name] for name in ("niche", "genome", "log_odds"))
        if not (
            genomes.shape == (len(niches), width)
            and worth.shape == tensors["generation"].shape == niches.shape
            and len(niches)
            and 0 <= int(niches.min()) <= int(niches.max()) < len(self.classes)
            and tensors["curve"].shape == (about["done"] + 1, 3)
            and tensors["sure"].shape == (about["done"] + 1,)
            and tensors["luck"].shape == self.luck.shape
        ):
            raise InputError(f"The archive {path} is damaged; begin anew with another file.")
        self._offer(
            niches.to(self.target.device), genomes.numpy(), worth.to(self.target.device), tensors["generation"].numpy()
        )
        self.curve, self.sure = tensors["curve"].tolist(), tensors["sure"].tolist()
        self.control, self.luck = tensors["control"], tensors["luck"]
        self.done, self.forward, self.seconds = about["done"], about["forward"], about["seconds"]


_SAVE_EVERY = 10.0  # seconds
_SURE_ODDS = math.log(SURE) - math.log1p(-SURE)


def _low_mid_high(values: Tensor) -> list[float]:
    ordered = values.sort().values
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2  # minus infinity may be among them
    return [float(ordered[0]), float(middle), float(ordered[-1])]


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what an archive file says and holds; raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["evolution"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(f"The archive {path} cannot be read: {error.strerror}.") from None
    except (SafetensorError, KeyError, ValueError, RecursionError):
        raise InputError(f"{path} is no archive of an evolution.") from None
    wanted = {"niche", "genome", "log_odds", "generation", "curve", "sure", "control", "luck"}
    if not isinstance(about, dict) or about.get("format") != _FORMAT or set(tensors) != wanted:
        raise InputError(f"{path} is no archive of an evolution that this version can read.")
    return about, tensors


def _categorical() -> Any:
    try:
        from ribs.archives import CategoricalArchive
    except ImportError:
        raise MissingExtra("Evolution needs pyribs: pip install 'unfooled[evolve]'.") from None
    return CategoricalArchive


def _code(encoding: EncodingName | Encoding, shape: Sequence[int]) -> Encoding:
    size = tuple(int(n) for n in shape)
    if not size or min(size) < 1:
        raise InputError(f"shape must be that of one input, such as (1, 28, 28), not {tuple(shape)}.")
    if isinstance(encoding, str):
        if encoding not in ENCODINGS:
            raise InputError(f"There is no encoding {encoding!r}; there are {' and '.join(ENCODINGS)}.")
        encoding = ENCODINGS[encoding](size)
    if encoding.shape != size:
        raise InputError(f"The encoding makes inputs of shape {encoding.shape}, not {size}.")
    if isinstance(encoding, Pattern) and len(size) != 3:
        raise InputError(f"The cppn encoding draws pictures [c, h, w], not inputs of shape {size}; use direct.")
    return encoding


def _numpy(dtype: torch.dtype) -> type[np.floating[Any]]:
    return np.float64 if dtype == torch.float64 else np.float32


@contextmanager
def _held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over, so that a generation counts whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    ends = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(end, lambda number, _: pressed.append(number)) for end in ends]
    try:
        yield
    finally:
        for end, handler in zip(ends, before, strict=True):
            signal.signal(end, handler)
    if pressed:
        signal.raise_signal(pressed[0])


@dataclass(frozen=True, eq=False)
class Diversity(Explanation):
    """How different the images of one class are that independent runs found, k classes.

    Distances are root mean squares over pixels, as shares of the input range.

    Attributes:
        target, encoding: whose images.
        runs: how many there are.
        classes: int64 [k].
        names: their names.
        distance: mean over the pairs of runs, float64 [k].
        other: mean distance of a class's image to those of other classes in other runs, float64 [k].
        control: mean distance of two random images of the encoding (its generation 0).
    """

    target: str
    encoding: str
    runs: int
    classes: Tensor
    names: tuple[str, ...]
    distance: Tensor
    other: Tensor
    control: float

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per class."""
        return [
            {"class": k, "name": name, "distance": same, "other_classes": other, "random_images": self.control}
            for k, name, same, other in zip(
                self.classes.tolist(), self.names, self.distance.tolist(), self.other.tolist(), strict=True
            )
        ]

    def sentence(self) -> str:
        """Return the mean distance beside those of other classes and of random images."""
        return (
            f"Images of the same class from {self.runs} runs ({self.encoding} encoding, {self.target}) differ by "
            f"{float(self.distance.mean()):.3f} of the range per pixel (root mean square), those of different classes "
            f"by {float(self.other.mean()):.3f}, random images of the encoding by {self.control:.3f}."
        )

    def draw(self, figure: "Figure") -> None:
        """Draw the distance of each class beside the random images'."""
        axes = figure.subplots()
        places = range(len(self.classes))
        axes.bar(places, self.distance.tolist(), color=COLOURS[0], width=0.6, label="same class, other run")
        axes.plot(places, self.other.tolist(), "o", color=COLOURS[1], label="other class, other run")
        axes.axhline(self.control, color=SOFT, lw=1, ls="--", label="random images")
        few = list(places)[:: max(1, len(self.names) // 20)]
        axes.set_xticks(few, [self.names[i].split(",")[0][:12] for i in few], rotation=0 if len(few) <= 10 else 60)
        axes.set_ylabel("distance per pixel (share of the range)")
        axes.set_title(f"{self.target}: how far apart {self.runs} independent runs end ({self.encoding})")
        axes.legend()


def diversity(runs: Sequence[Evolution]) -> Diversity:
    """Measure how different independent runs of one encoding are, class by class.

    Raises InputError for fewer than two runs, the same seed twice, or runs of other targets, encodings or classes.
    """
    if len(runs) < 2 or len({run.seed for run in runs}) < len(runs):
        raise InputError("diversity needs at least two runs, each with its own seed.")
    one = runs[0]
    for run in runs[1:]:
        for name, same in (
            ("target", run.target == one.target),
            ("encoding", run.code == one.code),
            ("classes", run.classes.equal(one.classes)),
        ):
            if not same:
                raise InputError(f"The runs differ in their {name}; diversity compares runs that differ in the seed.")
    low, high = one.bounds
    images = torch.stack([run.images.flatten(1).double() for run in runs]) / (high - low)  # [r, k, d]
    pairs = list(combinations(range(len(runs)), 2))
    apart = torch.stack([_apart(images[a], images[b]) for a, b in pairs]).mean(0)  # [k, k]
    k = len(one.classes)
    apart = (apart + apart.T) / 2
    others = (apart.sum(1) - apart.diagonal()) / max(1, k - 1)
    generator = torch.Generator().manual_seed(one.seed % 2**63)
    random = one.code.images(one.code.first(_RANDOM, generator)).flatten(1).double()
    between = _apart(random, random)
    control = float(between.sum() / (_RANDOM * (_RANDOM - 1)))
    return Diversity(
        one.target, one.encoding, len(runs), one.classes, one.names, apart.diagonal().clone(), others, control
    )  # fmt: skip


_RANDOM = 64  # images that say how far apart random ones lie


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Return the root mean square differences of the rows of a [m, d] and b [n, d], [m, n]."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(a.shape[1])
