"""Live progress on stderr: one moving line on a terminal, a plain line every few seconds elsewhere."""

import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unfooled.cli._words import console
from unfooled.errors import safe_text

if TYPE_CHECKING:
    from unfooled.core.fit import Step
    from unfooled.core.result import Progress

EVERY = 3.0
"""Seconds between plain lines at least."""

_WINDOW = 5.0  # seconds over which passes per second are measured


class Live:
    """Shows what `evaluate` and the others report; call it with a Progress.

    With `quiet` it shows nothing where stderr is no terminal.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = console(stderr=True)
        self._live = self._console.is_terminal
        self._mute = quiet and not self._live
        self._said = time.monotonic()
        self._seen: deque[tuple[float, int, int]] = deque()
        self._now, self._since = ("", 0), 0.0
        self._training: tuple[float, int] | None = None  # when it began, and how many images were done then
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Live":
        if self._live:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.fields[attack]}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[said]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, attack="loading", said="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, what: str) -> None:
        """Show on a terminal what is being done that has no examples to count."""
        if self._bar is not None:
            self._bar.update(self._task, total=None, attack=safe_text(what), said="")

    def note(self, line: str) -> None:
        """Show a line; on a terminal all lines stay, elsewhere one every few seconds is shown."""
        if self._live or self._due():
            self._console.print(safe_text(line), markup=False, overflow="ignore", crop=False, no_wrap=True)

    def _due(self) -> bool:
        if self._mute or time.monotonic() - self._said < EVERY:
            return False
        self._said = time.monotonic()
        return True

    def __call__(self, event: "Progress") -> None:
        """Show where the run stands."""
        if (event.attack, event.total) != self._now or event.seconds < self._since:
            self._now, self._since = (event.attack, event.total), event.seconds
        said = sentence(event, *self._rates(event), event.seconds - self._since)
        if self._bar is not None:
            self._bar.update(
                self._task, total=event.total, completed=event.done, attack=safe_text(event.attack), said=said
            )
        else:
            self.note(f"{event.attack}: {said}")

    def training(self, step: "Step") -> None:
        """Show where a training stands: images of this epoch, images a second, time left of the whole training."""
        now, done = time.monotonic(), (step.epoch - 1) * step.total + step.done
        if self._training is None:
            self._training = now, done
        began, before = self._training
        name, said = f"epoch {step.epoch}/{step.epochs}", f"{step.done:,}/{step.total:,} images"
        if done > before and now > began:
            speed = (done - before) / (now - began)
            said += f" · {speed:,.0f} images/s · about {clock((step.epochs * step.total - done) / speed)} left"
        if self._bar is not None:
            self._bar.update(self._task, total=step.total, completed=step.done, attack=name, said=said)
        else:
            self.note(f"{name}: {said}")

    def _rates(self, event: "Progress") -> tuple[float, float]:
        seen = self._seen
        if seen and event.forward < seen[-1][1]:
            seen.clear()  # another run began to count
        seen.append((event.seconds, event.forward, event.backward))
        while len(seen) > 2 and seen[-1][0] - seen[0][0] > _WINDOW:
            seen.popleft()
        spent = seen[-1][0] - seen[0][0]
        if spent <= 0:  # the first word of a run: its average
            return event.forward / max(event.seconds, 1e-9), event.backward / max(event.seconds, 1e-9)
        return (seen[-1][1] - seen[0][1]) / spent, (seen[-1][2] - seen[0][2]) / spent


def sentence(event: "Progress", forward: float, backward: float, spent: float) -> str:
    """Say how far a run is: examples done, robust accuracy so far, passes per second, time left in this attack.

    `forward` and `backward` are passes per second, `spent` the seconds that this attack has taken.
    """
    parts = [f"{event.done}/{event.total} examples"]
    if event.robust is not None:
        parts.append(f"at most {event.robust:.1%} robust so far")
    parts.append(f"{forward:,.0f} forward/s {backward:,.0f} backward/s")
    if event.total > event.done >= max(1, event.total / 10):  # before that it would be a guess
        parts.append(f"about {clock(spent * (event.total - event.done) / event.done)} left in this attack")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as people say it: 7 s, 3:05, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
