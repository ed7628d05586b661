"""Write docs/attacks.md from the recipe table: `python docs/make_attacks.py`; a test compares page and table."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unfooled import Access, Ball
from unfooled._noise import Noise, row_keys
from unfooled.attacks.gradient import GradientAttack
from unfooled.cli._list import made, row, shelf, smallest
from unfooled.core.attack import Problem, Recipe
from unfooled.core.goal import Untargeted
from unfooled.core.oracle import Oracle
from unfooled.core.target import as_target
from unfooled.norms import NORMS
from unfooled.testing import Linear

PAGE = Path(__file__).with_name("attacks.md")
SHAPE, CLASSES = (3, 12, 12), 10
HEAD = f"""# The attack shelf

A recipe is a call: `uf.run(uf.attacks.pgd(steps=40), module, x, y, uf.l2(0.5))`, or its text, `"pgd(steps=40)"`.
It prints as the call that made it. Which one to take: [choosing-an-attack.md](choosing-an-attack.md); how to add one:
[adding-an-attack.md](adding-an-attack.md).

- **eps**: *needed*, the recipe looks for a success within the ball; *or none*, with `uf.l2()` and the like it looks for
  the smallest change instead, and in a ball it stops at its first success inside.
- **cost**: rows sent forward + backward in a step, counted on a linear target with {CLASSES} classes, times the default
  number of steps and of runs. A row that is fooled in a ball stops there; every row has one more forward pass for
  the first look, and a success one for the re-check.
- **parts**: a first-order attack chooses a loss to climb, a class to aim at, how the gradient is had (sense), how steps
  combine (move), how long they are (rate, in units of eps), the radius that they stay in, and where they start.
  Settings are listed as they are called, with their defaults.

*This page is written by `python docs/make_attacks.py` from the table that the recipes register in.*
"""


def page() -> str:
    """Return the text of docs/attacks.md."""
    return "\n".join([HEAD, *(line for title, recipes in shelf().items() for line in _group(title, recipes))])


def _group(title: str, recipes: list[Recipe]) -> Iterator[str]:
    yield f"## {title}\n"
    head = "attack", "what it does", "access", "norms", "eps", "cost", "paper"
    told = [row(r) | {"cost": _cost(r)} for r in recipes]
    names = "what", "needs", "norms", "eps", "cost", "paper"
    yield _table(head, [(_code(t["name"]), *(t[name] for name in names)) for t in told])
    climbing = [(r, attack) for r in recipes if isinstance(attack := made(r), GradientAttack)]
    if climbing:
        head = "attack", "loss", "aim", "sense", "move", "rate", "radius", "start", "settings"
        yield _table(head, [(_code(r.name), *_parts(attack), _code(_settings(r))) for r, attack in climbing])
    others = [r for r in recipes if not isinstance(made(r), GradientAttack)]
    if others:
        yield _table(("attack", "settings"), [(_code(r.name), _code(_settings(r))) for r in others])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, (":--",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _parts(attack: GradientAttack) -> tuple[str, ...]:
    """Return loss, aim, sense, move, rate, radius and start in words."""
    aim = f"the {attack.aim.targets} likeliest wrong classes, one a run" if attack.aim.targets else "none"
    rest = _word(attack.sense), _word(attack.move), _word(attack.rate), "eps", _word(attack.start)
    return (attack.loss, aim, *rest)


def _word(part: Any) -> str:
    """Return a part as a word: `uniform` of Start("uniform"), `constant 0.125` of Constant(0.125)."""
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    first = next(iter(values.values()), "")
    if isinstance(first, str) and first:
        return first
    told = [f"{v:g}" if isinstance(v, float) else str(v) for v in values.values()]
    if len(told) > 1:
        told = [f"{name} {value}" for name, value in zip(values, told, strict=True)]
    return f"{type(part).__name__.lower()} {', '.join(told)}".strip()


def _settings(recipe: Recipe) -> str:
    given = inspect.signature(recipe.make).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given)


def _cost(recipe: Recipe) -> str:
    """Return what a step costs, as counted over three steps, and how many there are."""
    attack = made(recipe)
    if attack is None:
        return "(1 + 0) × 1"  # it shows what was learned
    if not recipe.norms:
        return f"({attack.queries_per_step} + 0) × {attack.steps:,}"
    door = Oracle(as_target(Linear.random(SHAPE, CLASSES, seed=0)), recipe.access)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = door.target.scores(x)
    ball = Ball(NORMS[recipe.norms[0]], *(() if smallest(recipe) else (0.01,)))
    noise = Noise(torch.from_numpy(row_keys(0, np.arange(len(x)), recipe.name)))
    label = scores.argmax(1)
    rows = torch.zeros_like(label)
    seen = scores if recipe.access >= Access.SCORES else None
    problem = Problem(x, label, None, rows, noise, x, seen, seen, ball, Untargeted(), door)
    state = attack.init(problem)
    for _ in range(3):
        state, _ = attack.step(problem, state)
    forward, backward = (count / (3 * len(x)) for count in (door.forward, door.backward))
    runs = attack.restarts(CLASSES)
    return f"({forward:g} + {backward:g}) × {attack.steps:,}" + (f" × {runs}" if runs > 1 else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
