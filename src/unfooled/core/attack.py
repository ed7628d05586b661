"""An attack is a frozen, printable recipe: `init` makes per-row state, `step` asks the oracle once per row."""

import ast
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

from .. import _rows
from .._noise import Noise
from .._rows import Batch
from ..errors import InputError, nearest
from .access import Access
from .goal import Goal
from .oracle import Answer, Oracle
from .threat import Threat

S = TypeVar("S")


@dataclass(frozen=True)
class Problem:
    """The rows in the slots; attacks only read it.

    Rows: `x0` [b, ...] the originals, `y` int64 [b] the true labels, `to` int64 [b] the wanted classes or None,
    `restart` int64 [b], `noise` private random numbers, `warm` [b, ...] the best point found so far (x0 at first) and
    `scores` [b, k] the target's answer there; `clean` [b, k] its answer at x0 (both None where scores may not be seen).
    """

    x0: Batch
    y: Tensor
    to: Tensor | None
    restart: Tensor
    noise: Noise
    warm: Batch
    scores: Tensor | None
    clean: Tensor | None
    threat: Threat
    goal: Goal
    oracle: Oracle
    surrogates: tuple[Oracle, ...] = ()

    def take(self, index: Sequence[int] | np.ndarray) -> "Problem":
        """Return the problem of the rows `index`."""
        return replace(self, **{name: _rows.take(getattr(self, name), index) for name in _ROWS})

    def put(self, index: Sequence[int] | np.ndarray, rows: "Problem") -> "Problem":
        """Return the problem with the rows `index` replaced."""
        return replace(self, **{name: _rows.put(getattr(self, name), index, getattr(rows, name)) for name in _ROWS})


_ROWS = ("x0", "y", "to", "restart", "noise", "warm", "scores", "clean")


@dataclass(frozen=True)
class Trial:
    """What one step showed the target, x [b, ...], and what came back; the engine asks whether it is a success."""

    x: Batch
    answer: Answer


@dataclass(frozen=True, repr=False)
class Attack(ABC, Generic[S]):
    """A recipe: settings only, frozen and re-entrant; `repr` is the call that makes it.

    `steps` oracle calls per row and restart at most, `restarts` tries in a row.
    """

    call: str = field(default="", kw_only=True)
    access: ClassVar[Access] = Access.GRADIENT
    inside: ClassVar[bool] = True  # every trial is inside the threat's set by construction

    def __repr__(self) -> str:
        """Return the recipe call, such as pgd(steps=40)."""
        if self.call:
            return self.call
        given = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "call")
        return f"{type(self).__name__}({given})"

    def key(self) -> str:
        """Return the settings as text: equal recipes have equal luck, however they were written.

        Settings marked `quiet` count only where they are not the default, so that a new one leaves old luck as it was.
        """
        given = [
            (f.name, getattr(self, f.name))
            for f in fields(self)
            if f.name != "call"
            and not (
                f.metadata.get("quiet") and callable(f.default_factory) and getattr(self, f.name) == f.default_factory()
            )
        ]
        return f"{type(self).__name__}({given!r})"

    @property
    def queries_per_step(self) -> int:
        """Forward passes per row and step."""
        return 1

    @property
    @abstractmethod
    def steps(self) -> int:
        """Oracle calls per row and restart."""

    def restarts(self, classes: int) -> int:
        """Tries per example with so many classes; a row starts its next try when the last one is used up."""
        return 1

    def through(self, surrogates: int) -> "Attack[S]":
        """Return the attack as it runs where so many surrogates lend their gradients: itself, unless it uses them."""
        return self

    def unfit(self, x: Batch, threat: Threat, classes: int) -> str:
        """Return the reason why the attack does not apply to such inputs under this threat, or ""."""
        return ""

    @abstractmethod
    def init(self, p: Problem) -> S:
        """Return the per-row state of fresh rows; makes no oracle call."""

    @abstractmethod
    def step(self, p: Problem, s: S) -> tuple[S, Trial]:
        """Show one input per row to the oracle and return the next state and what was shown."""

    def finished(self, p: Problem, s: S) -> Tensor | None:
        """Return which rows have nothing left to try, bool [b], or None: every row makes all its steps."""
        return None

    def last(self, p: Problem, s: S) -> Batch | None:
        """Return the iterate that the last step made and nobody looked at yet, [b, ...], or None."""
        return None


@dataclass(frozen=True)
class Recipe:
    """A row of the attack table: how to make it, where it is from, what it needs and what it promises.

    On a linear target whose nearest other class is d* away it finds something within factor * d*, never below d*.
    `smallest` marks minimum-norm recipes: with no eps given, what they find is no larger than smallest * d*. Where
    these are more than 1.05 and 1.01, `reason` says why.
    """

    name: str
    make: Callable[..., Attack[Any]]
    paper: str
    norms: tuple[str, ...]
    access: Access
    doc: str
    factor: float = 1.05
    reason: str = ""
    smallest: float | None = None


RECIPES: dict[str, Recipe] = {}
SPECIAL: dict[str, Recipe] = {}
"""Recipes without norms of their own: what was learned before, or poses of images; found by name like the others."""

A = TypeVar("A", bound=Attack[Any])


def recipe(
    paper: str,
    norms: Sequence[str],
    access: Access = Access.GRADIENT,
    factor: float = 1.05,
    reason: str = "",
    smallest: float | None = None,
) -> Callable[[Callable[..., A]], Callable[..., A]]:
    """Register a function that makes an attack, and let what it makes print as the call that made it."""

    def register(make: Callable[..., A]) -> Callable[..., A]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> A:
            bound = signature.bind(*args, **kwargs)
            given = ", ".join(f"{k}={v!r}" for k, v in bound.arguments.items())
            return replace(make(*args, **kwargs), call=f"{make.__name__}({given})")

        doc = (make.__doc__ or "").strip().split("\n")[0]
        table = RECIPES if norms else SPECIAL
        table[make.__name__] = Recipe(make.__name__, made, paper, tuple(norms), access, doc, factor, reason, smallest)
        return made

    return register


def parse(text: str) -> Attack[Any]:
    """Read a recipe call such as 'pgd(steps=40)' through the registry, never by eval; raises InputError."""
    name, args, kwargs = read_call(text, "attack", "pgd(steps=40)")
    table = RECIPES | SPECIAL
    if name not in table:
        raise InputError(f"There is no attack {name!r}.{nearest(name, table)}")
    try:
        return table[name].make(*args, **kwargs)
    except TypeError as error:
        known = ", ".join(inspect.signature(table[name].make).parameters)
        raise InputError(f"{text!r}: {error}; {name} takes {known}.") from None


def as_attack(attack: "Attack[Any] | str") -> "Attack[Any]":
    """Return an attack that may be written as a call; raises InputError as `parse`."""
    return parse(attack) if isinstance(attack, str) else attack


def read_call(text: str, what: str, example: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return name, positional and named arguments of a call of plain values, such as 'pgd(steps=40)' or 'pgd'.

    `what` and `example` are words of the InputError that anything else raises.
    """
    try:
        node = ast.parse(text.strip() if "(" in text else f"{text.strip()}()", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        args = [ast.literal_eval(a) for a in node.args]
        return node.func.id, args, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is no {what}; write for example {example}.") from None
