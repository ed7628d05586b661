"""Reading what users write on the command line, loading what it names, and the two consoles."""

import re
import shlex
import signal
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from unfooled.errors import InputError, MissingExtra, safe_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text
    from torch import Tensor

    from unfooled.core.data import Data
    from unfooled.core.result import Finding
    from unfooled.core.target import Target
    from unfooled.core.threat import Ball

TARGET, DATA, THREAT = "digits-cnn", "digits", "linf(0.1)"
"""What is taken where nothing is named."""

Flag = Annotated[bool, Parameter(show_default=False)]
"""An option that takes no value and is off unless given."""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIPE_WIDTH = 160  # characters a line where the output is no terminal


def console(*, stderr: bool = False) -> "Console":
    """Return the console for results, or the one for progress and remarks; both are wide enough when piped."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


def line(text: str, style: str = "") -> "Text":
    """Return what is printed as it is, on one line however long: no markup, no control characters."""
    from rich.text import Text

    return Text(safe_text(text), style=style, no_wrap=True, overflow="ignore")


def say_how_to_go_on(command: str) -> None:
    """Tell the command that goes on with a run that was stopped."""
    console(stderr=True).print(line(f"to go on with this run: {command}"), soft_wrap=True)


def cell(text: str, style: str = "") -> "Text":
    """Return what is printed as it is, wrapped where it must be: no markup, no control characters."""
    from rich.text import Text

    return Text(safe_text(text), style=style)


_STYLES = {"suspect": "yellow", "withheld": "red"}


def findings(found: "list[Finding]") -> "RenderableType":
    """Return the findings, one a row: id and consequence on the left, the sentence beside them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for f in found:
        table.add_row(cell(f.id), cell(f.consequence, _STYLES.get(f.consequence, "dim")), cell(f.sentence))
    return table


def load_torch() -> None:
    """Import torch, holding Ctrl-C back until it is there: interrupted half-way, it aborts the process."""
    pressed: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    ends = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = [signal.signal(end, lambda number, _: pressed.append(number)) for end in ends]
    try:
        import torch  # noqa: F401
    finally:
        for end, handler in zip(ends, before, strict=True):
            signal.signal(end, handler)
    if pressed:
        raise KeyboardInterrupt


def seconds(text: str | None) -> float | None:
    """Read a duration such as '5m', '90s', '1h30m' or '300' in seconds; raises InputError."""
    if text is None:
        return None
    parts = re.fullmatch(r"((?:\d+(?:\.\d+)?[smh])*)(\d+(?:\.\d+)?)?", text.strip().lower())
    total = 0.0
    if parts and text.strip():
        total = sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)([smh])", parts[1]))
        total += float(parts[2] or 0)
    if not total > 0:
        raise InputError(f"--budget {text!r} is no duration; write for example 90s, 5m or 1h30m.")
    return total


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read '0.485,0.456,0.406' (commas or spaces) as numbers; raises InputError naming `option`."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in re.split(r"[,\s]+", text.strip(" ,[]()")))
    except ValueError:
        raise InputError(f"{option} {text!r}: give one number per channel, for example 0.485,0.456,0.406.") from None
    return values


def need(package: str, extra: str, verb: str) -> None:
    """Raise MissingExtra where a package that a verb needs is not installed."""
    if find_spec(package) is None:
        raise MissingExtra(f"`unfooled {verb}` needs {package}: pip install 'unfooled[{extra}]'.")


def listed(value: Any) -> str:
    """Return the value of an option as it was written; those of a repeated one with commas between them."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def at_least_one(value: int | None, option: str) -> int | None:
    """Return `value`; raise InputError when it is 0 or less."""
    if value is not None and value < 1:
        raise InputError(f"{option} must be at least 1, not {value}.")
    return value


def slots(text: str) -> int | str:
    """Read --batch-size: 'auto' or a whole number of at least 1; raises InputError."""
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"--batch-size {text!r}: give 'auto' or a whole number of at least 1.")
    return int(text)


def reject(text: str | None) -> float | Literal["last"] | None:
    """Read --reject: 'last', or the confidence below which no answer counts; raises InputError."""
    if text is None:
        return None
    if text == "last":
        return "last"
    try:
        least = float(text)
    except ValueError:
        least = 0.0
    if not 0 < least < 1:
        raise InputError(f"--reject {text!r}: give 'last', or a confidence between 0 and 1 such as 0.9.")
    return least


def size(text: str | None) -> int | tuple[int, int] | None:
    """Read --resize: '224' (shorter side, then the centre square) or '224x256' (height by width); raises InputError."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise InputError(f"--resize {text!r}: give the shorter side (224), or height by width (224x256), in pixels.")
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 else int(parts[0])


def shape(text: str | None) -> tuple[int, int, int] | None:
    """Read --shape: channels, height and width such as 3x224x224; raises InputError."""
    if text is None:
        return None
    parts = re.fullmatch(r"([13])x(\d+)x(\d+)", text.strip().lower())
    if parts is None or int(parts[2]) == 0 or int(parts[3]) == 0:
        raise InputError(f"--shape {text!r}: give channels (1 or 3), height and width, for example 3x224x224.")
    return int(parts[1]), int(parts[2]), int(parts[3])


def pointed_into(image: str, data: str | None, data_dir: Path | None) -> "Data | None":
    """Return the data that a number points into, None when `image` is a file."""
    if not image.strip().isdecimal() or Path(image).exists():
        return None
    if data is None:
        raise InputError(f"Image {image} is a number, but it is not said of which data set; give --data or a file.")
    from unfooled.core.data import load_data

    return load_data(data, data_dir=data_dir)


def command_line(verb: str, positional: Sequence[str], given: dict[str, Any], *, without: Collection[str] = ()) -> str:
    """Return the command line of a verb: its positional arguments by name, then the options that were given.

    What is None, or off, or named in `without` is left out; a list repeats its option.
    """
    words = ["unfooled", verb, *(str(given[name]) for name in positional if given[name] is not None)]
    for name, value in given.items():
        if name in positional or name in without or value is None or value is False:
            continue
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            words += [w for each in (value if isinstance(value, list) else [value]) for w in (option, str(each))]
    return shlex.join(words)


class Loaded(NamedTuple):
    """What `Inputs` name: the target, its examples, the threat, and the word for the data."""

    target: "Target"
    examples: "Data"
    ball: "Ball"
    data: str


@dataclass(frozen=True)
class Inputs:
    """Target, data and threat as the command line words them: misread words fail at once, `load` does the work."""

    target: str
    data: str | None
    threat: str | None
    limit: int | None
    device: str
    weights: Path | None
    resize: str | None
    mean: str | None
    std: str | None
    reject: str | None
    wear: list[str] | None
    classes: Path | None
    data_dir: Path | None

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Inputs":
        """Take the arguments of a verb that belong to it; raises InputError for words that cannot be read."""
        made = cls(**{f.name: given[f.name] for f in fields(cls)})
        at_least_one(made.limit, "--limit")
        size(made.resize), numbers(made.mean, "--mean"), numbers(made.std, "--std"), reject(made.reject)
        return made

    def load(self) -> Loaded:
        """Load what was named; what was not comes from the target's model card. Raises InputError."""
        from unfooled import targets
        from unfooled.core.data import load_data, read_classes
        from unfooled.core.threat import linf, parse_threat

        ball = None if self.threat is None else parse_threat(self.threat)
        names = read_classes(self.classes) if self.classes is not None else None
        mean, std = numbers(self.mean, "--mean"), numbers(self.std, "--std")
        model = targets.resolve(
            self.target, weights=self.weights, mean=mean, std=std, classes=names, device=self.device
        )
        if self.reject is not None:
            model.reject = reject(self.reject)
        model = worn(model, self.wear)
        card = targets.ZOO.get(self.target)
        data = self.data or (card.data if card else DATA)
        examples = load_data(
            data,
            limit=self.limit,
            data_dir=self.data_dir,
            resize=size(self.resize),
            classes=names,
            bounds=model.bounds,
        )
        must_take(model, examples.x)
        return Loaded(model, examples, ball or (linf(card.eps) if card else parse_threat(THREAT)), data)


def worn(target: "Target", defences: list[str] | None) -> "Target":
    """Return the target behind the defences of --wear; raises InputError where one cannot be read."""
    from unfooled.harden import wear

    return wear(target, *(defences or ()))


def must_take(target: "Target", x: "Tensor") -> None:
    """Raise InputError in one sentence when the target's own code fails on the first input of x [n, ...]."""
    import torch

    from unfooled.core.target import untouched
    from unfooled.errors import UnfooledError

    try:
        with untouched(target), torch.no_grad():
            target.scores(x[:1].to(target.device))
    except (UnfooledError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's module raises
        said = (str(error).splitlines() or [""])[0].rstrip(".")
        shape = " x ".join(map(str, x.shape[1:]))
        raise InputError(
            f"{target.name} fails on an input of shape {shape} ({type(error).__name__}: {said}); "
            "give data of the size it was made for, or resize it."
        ) from error
