"""The engine: continuous batching. Slots are kept full; every row has its own step counter; the best so far is kept.

A row leaves its slot when it is fooled (bounded threats), when its steps and restarts are used up or when its query
budget is spent; the slot is refilled with the next example. What was found counts after an independent forward pass
on the point as it is stored. Restarts of an example run one after another, so counts do not depend on the batch.

Examples go through in chunks; what a chunk does depends on nothing but its examples and the pool at its start, so that
a journal may hold finished chunks and a resumed run do the others, bit for bit.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _rows
from .._noise import Noise, row_keys, text_key
from .._rows import Batch, sent
from ..errors import InputError, TargetError, Unavailable, UnfooledError, safe_text
from . import oracle as door
from .access import Access
from .attack import Attack, Problem
from .goal import SURE, Goal, Untargeted, advantage, valid
from .journal import Journal, pack, pack_rows, unpack, unpack_rows
from .oracle import Answer, Oracle
from .pool import Pool
from .result import Progress, Status
from .target import Target, as_target, reseed
from .threat import Threat

_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed", "not enough memory")
_CHECK_EVERY = 8  # steps between looks at the device's flags where a look costs a synchronisation
CHUNK = 8
"""Examples that are finished together and written to the journal together, in units of the slots."""


@dataclass
class _Slots:
    """The rows in work: `example` int64 [w], `live` bool [w] and `t` int64 [w] on the host, the rest on the device."""

    p: Problem
    s: Any
    example: np.ndarray
    live: np.ndarray
    t: np.ndarray
    best: Batch
    key: Tensor  # [w] what the best is best by: the lead (bounded threats), else minus the distance of a success
    scores: Tensor | None
    found: Tensor  # bool [w]
    found_t: Tensor  # int64 [w]

    def take(self, index: np.ndarray) -> "_Slots":
        rows: dict[str, Any] = {k: _rows.take(v, index) for k, v in vars(self).items() if k != "p"}
        return _Slots(p=self.p.take(index), **rows)

    def put(self, index: np.ndarray, new: "_Slots") -> "_Slots":
        rows = {k: _rows.put(v, index, getattr(new, k)) for k, v in vars(self).items() if k != "p"}
        return _Slots(p=self.p.put(index, new.p), **rows)


class Engine:
    """Runs recipes over a pool of examples through one oracle.

    Rows sent on behalf of nobody are counted as `padding` (empty slots) and `overrun` (rows already fooled that the
    host had not noticed yet), [forward, backward] each; `vanished` counts successes that the re-check refused.
    """

    def __init__(
        self,
        pool: Pool,
        oracle: Oracle,
        threat: Threat,
        goal: Goal,
        width: int,
        seed: int,
        queries: int | None = None,
        deadline: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        surrogates: tuple[Oracle, ...] = (),
        journal: Journal | None = None,
        phase: str = "",
        key: str = "",
    ) -> None:
        self.pool, self.oracle, self.threat, self.goal = pool, oracle, threat, goal
        self.journal, self.phase, self.key = journal, phase, key
        self.chunk = CHUNK * width
        self.seconds = self.saved = 0.0  # of all chunks, and of those that were read from the journal
        self._runs = 0
        self._lost = np.zeros(len(pool.y), dtype=bool)  # left the attack because the target raised on them
        self._like: Answer | None = None
        self.width, self.seed, self.queries = width, seed, queries
        self.deadline, self.progress, self.surrogates = deadline, progress, surrogates
        self.device, self.dtype = oracle.target.device, oracle.target.work_dtype
        self.padding, self.overrun = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
        self.vanished = 0
        self.classes = 0
        self.notes: list[str] = []
        self.lazy = self.device.type != "cpu"  # a look at the rows' flags costs a synchronisation
        self._since_look = 0
        self._done = 0
        self._begun = self._told = time.monotonic()

    def look(self, relabel: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Ask for the clean answer of every example: what is wrong already, is not attacked.

        `relabel` gets the scores [n, k] and the labels y [n], and returns the labels to go by, or raises.
        """
        pool = self.pool
        if not len(pool.y):
            return
        answer = self._first_look()
        pool.forward += 1
        pool.label_clean, pool.label = answer.label.cpu(), answer.label.cpu().clone()
        if answer.scores is not None:
            pool.scores = answer.scores.cpu().float()
            pool.clean = pool.scores.clone()
            self.classes = pool.scores.shape[1]
            if relabel is not None:
                asked = torch.from_numpy(~self._lost)
                pool.y = pool.y.clone()
                pool.y[asked] = relabel(pool.scores[asked], pool.y[asked])
            outside = (pool.y < 0) | (pool.y >= self.classes)
            if bool(outside.any()):
                i = int(outside.nonzero()[0])
                raise InputError(f"Label {int(pool.y[i])} is outside 0..{self.classes - 1} (sample {i}).")
            pool.confidence_clean = pool.scores.softmax(1).amax(1)
            pool.confidence = pool.confidence_clean.clone()
            pool.status[~valid(pool.scores).numpy()] = Status.INVALID
        pool.to = self.goal.wanted(pool.y, pool.scores)
        seen = None if answer.scores is None else answer.scores.cpu()
        accepted = None if answer.accepted is None else answer.accepted.cpu()
        votes = None if answer.votes is None else answer.votes.cpu()
        pool.lead = advantage(Answer(seen, pool.label, accepted, answer.draws, votes), pool.y, pool.to).float()
        pool.margin = -pool.lead.clone()
        if pool.to is not None:
            pool.status[(pool.to == pool.y).numpy() & (pool.status == Status.SURVIVED)] = Status.SKIPPED
        wrong = pool.label != pool.y
        if votes is not None:  # a random target is wrong before any attack where it is so in nearly all draws
            wrong = votes.gather(1, pool.y.view(-1, 1))[:, 0] < 1 - SURE
        elif accepted is not None:
            wrong |= ~accepted
        pool.status[wrong.numpy() & (pool.status != Status.INVALID)] = Status.MISCLASSIFIED
        pool.status[self._lost] = Status.FAILED
        pool.lead[self._lost], pool.margin[self._lost] = -torch.inf, torch.nan

    def run(self, attack: Attack[Any], todo: np.ndarray) -> int:
        """Attack the examples `todo`; return how many were attempted."""
        short = self._short(todo, attack.queries_per_step + 2)  # a step, the last look and the re-check
        self.pool.unrun[todo[short & (self.pool.forward[todo] <= 1)]] = True  # no attack could ask anything
        todo = todo[~short]
        self.pool.lead[todo] = -torch.inf  # the best points of the attack before stay as this one's warm starts
        self._done, attempted, self._runs = 0, 0, self._runs + 1
        for number, at in enumerate(range(0, len(todo), self.chunk)):
            part = todo[at : at + self.chunk]
            attempted += self._once(
                f"{self._runs}/{attack.key()}/{number}",
                part,
                lambda part=part: self._drain(attack, part, len(todo)),  # type: ignore[misc]
                lambda part=part: pack(self.pool, part, repr(attack)),  # type: ignore[misc]
                lambda rows: unpack(self.pool, rows),
            )
        self._tell(attack, len(todo), force=True)
        if len(todo) and not any(s in (Status.SURVIVED, Status.BROKEN) for s in self.pool.status):
            raise TargetError(f"The target raised on every input that was attacked, first {self.pool.why[todo[0]]}.")
        return attempted

    def _drain(self, attack: Attack[Any], todo: np.ndarray, total: int) -> tuple[int, bool]:
        """Attack a chunk of the `total` examples; return how many were attempted, and whether time was left for all."""
        jobs = deque((int(i), 0) for i in todo)
        slots: _Slots | None = None
        while True:
            if self._late():
                self._abandon(attack, jobs, slots)
                return len(todo) - len({i for i, _ in jobs}), False
            try:
                slots = self._fill(attack, slots, jobs)
                if slots is None:
                    return len(todo), True
                slots = self._step(attack, slots, jobs)
            except Unavailable:  # nothing can be asked again: the best that was shown stays, unconfirmed
                if slots is not None:
                    won = slots.key > (0 if self.threat.bounded else -torch.inf)
                    index = np.flatnonzero(won.cpu().numpy() & slots.live)
                    _rows.assign(self.pool.best, slots.example[index], _rows.take(slots.best, index))
                raise
            except Exception as error:
                shrunk = _out_of_memory(error)
                if not shrunk and (slots is None or not _of_the_target(error)):
                    raise
                failure: Exception | None = None if shrunk else error
            else:
                shrunk, failure = False, None
            if shrunk:  # outside the except block: its traceback holds the tensors that must go
                slots = self._halve(slots, jobs)
            if failure is not None and slots is not None:
                slots = self._without_culprits(attack, slots, failure)
            self._tell(attack, total)

    def _late(self) -> bool:
        """Whether the time is over, that of the attempts before this one included."""
        spent = 0.0 if self.journal is None else self.journal.saved
        return self.deadline is not None and time.monotonic() + spent > self.deadline

    def _once(
        self,
        name: str,
        index: np.ndarray,
        work: Callable[[], tuple[int, bool]],
        written: Callable[[], list[dict[str, Any]]],
        restore: Callable[[list[dict[str, Any]]], None],
    ) -> int:
        """Do the chunk `name` of the examples `index`, or restore it from the journal; return how many it attempted.

        What is not finished (False from `work`) is not written, so that a resumed run does it again.
        """
        self._since_look = 0
        self._lost[index] = False
        # for targets that draw from the global generators
        reseed(text_key(f"{self.seed}/{self.phase}/{name}") & 0xFFFFFFFF, self.device)
        key = f"{self.key}/{name}"
        entry = None if self.journal is None else self.journal.read(key)
        if self.journal is not None and entry and [row["example"] for row in entry.rows] == index.tolist():
            restore(entry.rows)
            self._credit(entry.totals)
            self.journal.saved += entry.totals["seconds"]
            return int(entry.totals["attempted"])
        before, noted, begun = self._ledger(), len(self.notes), time.monotonic()
        try:
            attempted, finished = work()
        finally:
            seconds = time.monotonic() - begun
            self.seconds += seconds
        if self.journal is not None and finished:
            totals = {k: v - before[k] for k, v in self._ledger().items()}
            more = {"notes": self.notes[noted:], "width": self.width, "attempted": attempted, "seconds": seconds}
            self.journal.write(key, written(), totals | more)
        return attempted

    def _ledger(self) -> dict[str, int]:
        """Return all counts that a chunk adds to."""
        return {
            "forward": self.oracle.forward,
            "backward": self.oracle.backward,
            "padding_forward": int(self.padding[0]),
            "padding_backward": int(self.padding[1]),
            "overrun_forward": int(self.overrun[0]),
            "overrun_backward": int(self.overrun[1]),
            "vanished": self.vanished,
            "done": self._done,
            "sent": self.oracle.target.sent[0],
        }

    def _credit(self, totals: dict[str, Any]) -> None:
        """Add the counts of a chunk that was done by an earlier process."""
        self.oracle.forward += totals["forward"]
        self.oracle.backward += totals["backward"]
        self.padding += [totals["padding_forward"], totals["padding_backward"]]
        self.overrun += [totals["overrun_forward"], totals["overrun_backward"]]
        self.vanished += totals["vanished"]
        self._done += totals["done"]
        self.oracle.target.sent[0] += totals["sent"]
        self.width = min(self.width, totals["width"])
        self.notes += totals["notes"]
        self.seconds += totals["seconds"]
        self.saved += totals["seconds"]

    def _step(self, attack: Attack[Any], slots: _Slots, jobs: deque[tuple[int, int]]) -> _Slots:
        with self._charged(slots):
            state, trial = attack.step(slots.p, slots.s)
        slots.s = state
        slots.t[slots.live] += 1
        lead = advantage(trial.answer, slots.p.y, slots.p.to)
        if not attack.inside:
            lead = torch.where(self.threat.contains(trial.x, slots.p.x0), lead, -torch.inf)
        key = lead if self.threat.bounded else self._closeness(trial.x, slots.p.x0, lead, trial.answer)
        better = (key > slots.key) & ~slots.found
        slots.best = _rows.where(better, trial.x, slots.best)
        slots.key = torch.where(better, key, slots.key)
        if slots.scores is not None and trial.answer.scores is not None:
            slots.scores = _rows.where(better, trial.answer.scores.float(), slots.scores)
        if self.threat.bounded:
            fresh = (lead > 0) & ~slots.found
            slots.found = slots.found | fresh
            slots.found_t = torch.where(fresh, torch.as_tensor(slots.t, device=self.device), slots.found_t)
        self._since_look += 1
        look = self._since_look >= (_CHECK_EVERY if self.lazy else 1)
        spent = self._spent(attack, slots, ask=look)
        if spent.any() or (self.threat.bounded and look):
            self._since_look = 0
            found = slots.found.cpu().numpy() & slots.live
            if (found | spent).any():
                self._retire(attack, slots, found, jobs)
        return slots

    def _spent(self, attack: Attack[Any], slots: _Slots, *, ask: bool = True) -> np.ndarray:
        """Which live rows have no step left, by the attack's steps, its own word or the query budget, bool [w]."""
        out = (slots.t >= attack.steps) | self._short(slots.example, attack.queries_per_step + 2)
        done = attack.finished(slots.p, slots.s) if ask else None
        out = out if done is None else out | done.cpu().numpy()
        spent: np.ndarray = slots.live & out
        return spent

    def _short(self, example: np.ndarray, rows: int) -> np.ndarray:
        """Which examples may not send so many more rows, bool [m]."""
        short: np.ndarray = self.pool.forward[example] + rows > (np.inf if self.queries is None else self.queries)
        return short

    def _noise(self, answer: Answer) -> Tensor | float:
        """The margin, [b], up to which rounding of the scores may decide."""
        if answer.scores is None:
            return 0.0
        # the two best alone: classes may be ruled out by -1e9 or -inf
        size = answer.scores.float().topk(2, dim=1).values.nan_to_num(neginf=0.0).abs().amax(1)
        return self.oracle.target.rounding * torch.finfo(answer.scores.dtype).eps * size

    def _closeness(self, x: Batch, x0: Batch, lead: Tensor, answer: Answer) -> Tensor:
        """Minus the distance, [b], of a success by twice the rounding noise: tight points must not vanish."""
        near = -self.threat.distance(x, x0)
        return torch.where(lead > 2 * self._noise(answer), near.to(lead.dtype), -torch.inf)

    def _without_culprits(self, attack: Attack[Any], slots: _Slots, error: Exception) -> _Slots | None:
        """Take the rows out on which the target raises in the attack's next step, and go on without them."""

        def step(index: np.ndarray) -> None:
            part = slots.take(index)
            attack.step(part.p, part.s)

        culprits = self._culprits(step, np.arange(len(slots.live)), error)
        index = np.array(sorted(culprits))
        live = index[slots.live[index]]
        self._lose(slots.example[live], [culprits[i] for i in live])
        self._done += len(live)
        good = np.setdiff1d(np.arange(len(slots.live)), index)
        if not len(good):
            return None
        slots = slots.put(index, slots.take(np.resize(good, len(index))))
        slots.live[index] = False
        return slots

    def _culprits(self, ask: Callable[[np.ndarray], Any], index: np.ndarray, error: Exception) -> dict[int, Exception]:
        """Return the rows among `index` on which the target raises, with what it raises, by halving.

        Raises `error` when there is none: the rows go through in smaller batches, so it is not for their sake.
        """
        before = np.array([self.oracle.forward, self.oracle.backward])
        found: dict[int, Exception] = {}
        waiting = [index]
        while waiting:
            part = waiting.pop()
            try:
                ask(part)
            except Exception as raised:
                if not _of_the_target(raised) or _out_of_memory(raised):
                    raise
                if len(part) == 1:
                    found[int(part[0])] = raised.with_traceback(None)
                else:
                    waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        self.overrun += np.array([self.oracle.forward, self.oracle.backward]) - before
        if not found:
            raise error
        return found

    def _lose(self, example: np.ndarray, errors: list[Exception]) -> None:
        """Let examples leave on which the target raised; what was found on them before stands."""
        for i, error in zip(example, errors, strict=True):
            said = (str(error).splitlines() or [""])[0][:200].rstrip(". ")
            self.pool.why[i] = safe_text(f"{type(error).__name__}: {said}" if said else type(error).__name__)
        self._lost[example] = True
        self.pool.status[example[self.pool.status[example] == Status.SURVIVED]] = Status.FAILED

    def _retire(self, attack: Attack[Any], slots: _Slots, found: np.ndarray, jobs: deque[tuple[int, int]]) -> None:
        """Re-check what was found, look at last iterates, and let rows leave, or go on with their next restart."""
        self._refund_overrun(slots, found)
        broken = self._confirm(attack, slots, found)
        spent = self._spent(attack, slots) & ~broken
        self._look_at_last(attack, slots, spent & ~self._short(slots.example, 2))
        broken |= self._confirm(attack, slots, spent & ~self._short(slots.example, 1))
        lost = slots.live & self._lost[slots.example]
        self._done += int((lost & ~broken).sum() if self.threat.bounded else lost.sum())
        spent |= lost
        over = np.flatnonzero(spent & ~lost & ~broken if self.threat.bounded else spent & ~lost)
        if len(over) and self.threat.bounded:
            best = slots.take(over)
            self.pool.keep(best.example, best.best, best.key, best.scores)
        restarts = slots.p.restart.cpu().numpy()
        short = self._short(slots.example, attack.queries_per_step + 2)
        for i in over[::-1]:
            if restarts[i] + 1 < attack.restarts(self.classes) and not short[i]:
                jobs.appendleft((int(slots.example[i]), int(restarts[i]) + 1))
            else:
                self._done += 1
        self._done += int(broken.sum()) if self.threat.bounded else 0
        slots.live[broken | spent] = False

    def _look_at_last(self, attack: Attack[Any], slots: _Slots, rows: np.ndarray) -> None:
        """Ask for the iterates that the last step made, of the rows bool [w], and keep them where they are better."""
        index, last = np.flatnonzero(rows), attack.last(slots.p, slots.s)
        if last is None or not len(index):
            return
        x, at = _rows.take(last, index), slots.p.take(index)
        answer = self._look(x, slots.example[index])
        self.pool.forward[slots.example[index]] += 1
        lead = advantage(answer, at.y, at.to)
        lead = torch.where(self.threat.contains(self.threat.settle(x, at.x0), at.x0), lead, -torch.inf)
        lead[torch.from_numpy(self._lost[slots.example[index]])] = -torch.inf
        key = lead if self.threat.bounded else self._closeness(x, at.x0, lead, answer)
        better = np.flatnonzero((key > slots.key[torch.as_tensor(index, device=self.device)]).cpu().numpy())
        slots.best = _rows.put(slots.best, index[better], _rows.take(x, better))
        slots.key = _rows.put(slots.key, index[better], _rows.take(key, better))
        if slots.scores is not None and answer.scores is not None:
            slots.scores = _rows.put(slots.scores, index[better], _rows.take(answer.scores, better))

    def _confirm(self, attack: Attack[Any], slots: _Slots, rows: np.ndarray) -> np.ndarray:
        """Re-check the successes among the rows bool [w]; return which are broken, bool [w]. The others go on."""
        won = slots.key > (0 if self.threat.bounded else -torch.inf)
        index = np.flatnonzero(rows & won.cpu().numpy())
        broken = np.zeros_like(slots.live)
        if len(index):
            broken[index] = self._recheck(attack, slots, index)
            refused = index[~broken[index] & ~self._lost[slots.example[index]]]
            self.vanished += len(refused)
            worst = torch.full_like(slots.key[: len(refused)], 0.0 if self.threat.bounded else -torch.inf)
            slots.key = _rows.put(slots.key, refused, worst)
            slots.found = _rows.put(slots.found, refused, torch.zeros_like(worst, dtype=torch.bool))
        return broken

    def _recheck(self, attack: Attack[Any], slots: _Slots, index: np.ndarray) -> np.ndarray:
        """Ask again for the stored points of the rows `index`; write the confirmed ones to the pool, return which."""
        pool, rows, example = self.pool, slots.take(index), slots.example[index]
        x = self.threat.settle(rows.best, rows.p.x0)
        legal = self.threat.contains(x, rows.p.x0)
        answer = self._look(x, example)
        pool.forward[example] += 1
        lead = advantage(answer, rows.p.y, rows.p.to)
        sure: np.ndarray = (legal & (lead > self._noise(answer))).cpu().numpy() & ~self._lost[example]
        distance = self.threat.distance(x, rows.p.x0).cpu().double()
        nearer = ~(pool.distance[example] <= distance).numpy()  # a restart may have found a smaller change already
        good = np.flatnonzero(sure & nearer)
        at = example[good]
        if len(good):
            x_good = _rows.take(x, good)
            _rows.assign(pool.x_adv, at, x_good)
            _rows.assign(pool.best, at, x_good)
            pool.distance[at] = distance[good]
            pool.label[at] = answer.label.cpu()[good]
            pool.lead[at] = lead.cpu().float()[good]
            pool.margin[at] = -pool.lead[at]
            if answer.scores is not None:
                scores = answer.scores.cpu().float()[good]
                pool.confidence[at] = scores.softmax(1).amax(1)
                if pool.scores is not None:
                    pool.scores[at] = scores
            restart = rows.p.restart.cpu().numpy()[good]
            pool.steps[at] = rows.t[good] + restart * attack.steps
            pool.broken_by[at] = repr(attack)
            pool.status[at] = Status.BROKEN
        return sure

    def _fill(self, attack: Attack[Any], slots: _Slots | None, jobs: deque[tuple[int, int]]) -> _Slots | None:
        """Refill empty slots with waiting jobs; when none wait, fall to a smaller width; None when all is done."""
        if slots is None:
            if not jobs:
                return None
            count = min(len(jobs), self.width)
            fresh = self._fresh(attack, jobs, count)
            width = _rung(count, self.width) if self.lazy else count
            if width > count:
                fresh = fresh.take(np.arange(width) % count)
                fresh.live[count:] = False
            return fresh
        free = np.flatnonzero(~slots.live)
        if jobs and len(free):
            index = free[: len(jobs)]
            slots = slots.put(index, self._fresh(attack, jobs, len(index)))
            free = free[len(index) :]
        if not slots.live.any():
            return None
        live, now = int(slots.live.sum()), len(slots.live)
        width = _rung(live, now) if self.lazy else live if live <= 0.875 * now else now
        if len(free) and width < len(slots.live):
            order = np.argsort(~slots.live, kind="stable")[:width]  # the live ones first, in their order
            return slots.take(order)
        return slots

    def _fresh(self, attack: Attack[Any], jobs: deque[tuple[int, int]], count: int) -> _Slots:
        """Make rows of the next jobs; they leave the queue once nothing can fail any more."""
        pool, n = self.pool, range(count)
        example, restart = np.array([jobs[i][0] for i in n]), np.array([jobs[i][1] for i in n])
        keys = torch.from_numpy(row_keys(self.seed, pool.ids[example], attack.key(), restart)).to(self.device)
        best = self._here(_rows.take(pool.best, example))
        scores = None if pool.scores is None else pool.scores[example].to(self.device)
        problem = Problem(
            x0=self._here(_rows.take(pool.x, example)),
            y=pool.y[example].to(self.device),
            to=None if pool.to is None else pool.to[example].to(self.device),
            restart=torch.from_numpy(restart).to(self.device),
            noise=Noise(keys),
            warm=best,
            scores=scores,
            clean=None if pool.clean is None else pool.clean[example].to(self.device),
            threat=self.threat,
            goal=self.goal,
            oracle=self.oracle,
            surrogates=self.surrogates,
        )
        lead = pool.lead[example].to(self.device, self.dtype)
        fresh = _Slots(
            p=problem,
            s=attack.init(problem),
            example=example,
            live=np.ones(count, dtype=bool),
            t=np.zeros(count, dtype=np.int64),
            best=best,
            key=lead if self.threat.bounded else torch.full_like(lead, -torch.inf),
            scores=scores,
            found=torch.zeros(count, dtype=torch.bool, device=self.device),
            found_t=torch.zeros(count, dtype=torch.int64, device=self.device),
        )
        for _ in n:
            jobs.popleft()
        return fresh

    def _here(self, x: Batch) -> Batch:
        return x.to(self.device, self.dtype) if isinstance(x, Tensor) else x

    def _look(self, x: Batch, example: np.ndarray) -> Answer:
        """Ask for any number of rows in pieces of the engine's width; nobody answers where the target raises."""
        parts: list[Answer] = []
        at = 0
        while at < len(x):
            try:
                parts.append(self.oracle.look(self._here(x[at : at + self.width])))
            except Exception as error:
                shrunk = _out_of_memory(error)
                if not shrunk and not _of_the_target(error):
                    raise
                failure: Exception | None = None if shrunk else error
            else:
                shrunk, failure = False, None
                self._like = parts[-1]
            if failure is not None:
                parts.append(self._look_apart(x[at : at + self.width], example[at : at + self.width], failure))
            if not shrunk:
                at += self.width
            else:
                self.width = min(self.width, len(x) - at)
                self._halve(None, deque())
        return _joined(parts)

    def _look_apart(self, x: Batch, example: np.ndarray, error: Exception) -> Answer:
        """Ask for the rows on which the target does not raise; the others have no answer, and their examples leave."""

        def ask(index: np.ndarray) -> Answer:
            return self.oracle.look(self._here(_rows.take(x, index)))

        culprits = self._culprits(ask, np.arange(len(x)), error)
        bad = np.array(sorted(culprits))
        self._lose(example[bad], [culprits[i] for i in bad])
        good = np.setdiff1d(np.arange(len(x)), bad)
        if len(good):
            self._like = ask(good)
        elif self._like is None:
            raise TargetError(f"The target raised on every input, first {self.pool.why[example[0]]}.") from error
        return _spread(self._like, good, len(x))

    def _first_look(self) -> Answer:
        """Ask for the clean answer of every example, chunk by chunk."""
        parts: list[Answer] = []
        for number, at in enumerate(range(0, len(self.pool.y), self.chunk)):
            index = np.arange(at, min(at + self.chunk, len(self.pool.y)))

            def ask(at: int = at, index: np.ndarray = index) -> tuple[int, bool]:
                parts.append(self._look(self.pool.x[at : at + self.chunk], index))
                return len(index), True

            def written(index: np.ndarray = index) -> list[dict[str, Any]]:
                why = [{"why": text} if text else {} for text in self.pool.why[index]]
                return [a | b for a, b in zip(_answer_rows(parts[-1], index), why, strict=True)]

            def restore(rows: list[dict[str, Any]], index: np.ndarray = index) -> None:
                parts.append(_answer_of(rows, self.device))
                self.pool.why[index] = [row.get("why", "") for row in rows]
                self._lost[index] = self.pool.why[index] != ""

            self._once(f"look/{number}", index, ask, written, restore)
        return _joined(parts)

    @contextmanager
    def _charged(self, slots: _Slots) -> Iterator[None]:
        """Share what passes the door among the live rows; empty slots are padding."""
        before = np.array([self.oracle.forward, self.oracle.backward])
        try:
            yield
        except BaseException:  # what went through before it failed, went through for nobody
            self.overrun += np.array([self.oracle.forward, self.oracle.backward]) - before
            raise
        each = (np.array([self.oracle.forward, self.oracle.backward]) - before) // len(slots.live)
        self._each = each
        at = slots.example[slots.live]
        self.pool.forward[at] += each[0]
        self.pool.backward[at] += each[1]
        self.padding += each * int((~slots.live).sum())

    def _refund_overrun(self, slots: _Slots, found: np.ndarray) -> None:
        if not self.lazy or not found.any():
            return
        late = (slots.t - slots.found_t.cpu().numpy())[found]
        self.pool.forward[slots.example[found]] -= late * self._each[0]
        self.pool.backward[slots.example[found]] -= late * self._each[1]
        self.overrun += self._each * int(late.sum())
        slots.t[found] -= late

    def _halve(self, slots: _Slots | None, jobs: deque[tuple[int, int]]) -> _Slots | None:
        """Go on with half the slots; the rows that lose theirs start again later with the same luck."""
        if slots is not None:
            self.width = min(self.width, len(slots.live))
        if self.width == 1:
            raise TargetError(
                "Out of memory with a single input in the batch; use a smaller target or a device with more memory."
            )
        self.width = max(1, self.width // 2)
        self.notes.append(f"Out of memory; continued with {self.width} slots. Results are unaffected.")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if slots is None:
            return None
        restarts = slots.p.restart.cpu().numpy()
        for i in np.flatnonzero(slots.live)[::-1]:
            if i >= self.width:
                jobs.appendleft((int(slots.example[i]), int(restarts[i])))
        return slots.take(np.arange(self.width))

    def _abandon(self, attack: Attack[Any], jobs: deque[tuple[int, int]], slots: _Slots | None) -> None:
        self.pool.unrun[[i for i, _ in jobs]] = True
        if slots is not None:
            self.pool.unrun[slots.example[slots.live]] = True
            self._refund_overrun(slots, slots.found.cpu().numpy() & slots.live)
            self._confirm(attack, slots, slots.live & ~self._short(slots.example, 1))

    def _tell(self, attack: Attack[Any], total: int, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.progress is None or (now - self._told < 0.1 and not force):
            return
        self._told = now
        robust = float((self.pool.status == Status.SURVIVED).mean()) if len(self.pool.y) else None
        self.progress(
            Progress(
                done=self._done,
                total=total,
                attack=repr(attack),
                robust=robust,
                forward=self.oracle.forward,
                backward=self.oracle.backward,
                seconds=now - self._begun + self.saved,
            )
        )


def last_iterate(
    attack: Attack[Any],
    target: Target | Callable[..., Any],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    ids: np.ndarray | None = None,
    step: int = 0,
    to: Tensor | None = None,
    surrogates: Sequence[Target] = (),
) -> Tensor:
    """Return the attack's last iterate for every row, [b, ...]: the tiny door for training.

    All rows make all steps, nothing is stopped early or re-checked, and the module's mode (train or eval) is left as
    it is. `ids` int64 [b] and `step` make the noise; x lies on the module's device. `to` int64 [b] are wanted classes,
    `surrogates` lend their gradients to transfer attacks. Raises InputError when the attack does not apply, which holds
    for attacks that aim at classes by the clean answer too: none is asked for here.
    """
    attack = attack.through(len(surrogates))
    door = Oracle(as_target(target), attack.access)
    threat = threat.within(door.target.bounds)
    if reason := attack.unfit(x, threat, 0):
        raise InputError(f"{attack!r} does not apply: {reason}.")
    names = np.arange(len(x), dtype=np.int64) if ids is None else np.asarray(ids, dtype=np.int64)
    keys = sent(torch.from_numpy(row_keys(seed, names, attack.key(), step)), x.device)
    lenders = tuple(Oracle(s, Access.GRADIENT) for s in surrogates)
    p = Problem(x, y, to, torch.zeros_like(y), Noise(keys), x, None, None, threat, Untargeted(), door, lenders)
    state = attack.init(p)
    for _ in range(attack.steps):
        state, trial = attack.step(p, state)
    last = attack.last(p, state)
    end = trial.x if last is None else last
    assert isinstance(end, Tensor)
    return end.detach()


def _joined(parts: list[Answer]) -> Answer:
    """Return the answers to consecutive rows as one."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(Answer)):
        column = [getattr(a, name) for a in parts]
        columns[name] = torch.cat(column) if isinstance(column[0], Tensor) else column[0]
    return Answer(**columns)


def _spread(answer: Answer | None, index: np.ndarray, rows: int) -> Answer:
    """Return an answer of `rows` rows: the given one at `index`, elsewhere NaN, -1 and no; a pattern where none is."""
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(Answer)):
        value = values[name] = getattr(answer, name)
        if isinstance(value, Tensor):
            nothing = torch.nan if value.is_floating_point() else False if value.dtype == torch.bool else -1
            values[name] = value.new_full((rows, *value.shape[1:]), nothing)
            _rows.assign(values[name], index, value[: len(index)])
    return Answer(**values)


def _answer_rows(answer: Answer, index: np.ndarray) -> list[dict[str, Any]]:
    """Return an answer as records for the journal, the settings that all rows share with the first."""
    rows: list[dict[str, Any]] = [{"example": int(i)} for i in index]
    for name, value in ((f.name, getattr(answer, f.name)) for f in fields(Answer)):
        if not isinstance(value, Tensor):
            rows[0][name] = value
            continue
        rows[0][f"{name} as"] = [list(value.shape[1:]), str(value.dtype).removeprefix("torch.")]
        for row, text in zip(rows, pack_rows(value), strict=True):
            row[name] = text
    return rows


def _answer_of(rows: list[dict[str, Any]], device: torch.device) -> Answer:
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(Answer)):
        kind = rows[0].get(f"{name} as")
        values[name] = unpack_rows([r[name] for r in rows], *kind).to(device) if kind else rows[0].get(name)
    return Answer(**values)


def _rung(live: int, width: int) -> int:
    """The power of two that holds `live` rows, `width` at most."""
    return min(width, 1 << (live - 1).bit_length())


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(t in str(error).lower() for t in _MEMORY)


def _of_the_target(error: BaseException) -> bool:
    """Whether an error came through the door: raised by the target, not by an attack, the engine or the user."""
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == door.__file__:
            return isinstance(error, Exception) and not isinstance(error, UnfooledError)
        at = at.tb_next
    return False
