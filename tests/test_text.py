"""The engine on strings: an edit-distance threat, a random search over edits, a bag-of-characters target.

Nothing of this is in the package yet. It shows that text fits without moving a wall: rows are Python strings, the
threat is no ball, and the engine's promises hold all the same.
"""

import math
import string
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from unfooled import Status, _rows, attacks
from unfooled.core import run as run_module
from unfooled.core.attack import Attack, Problem, Trial
from unfooled.core.engine import Engine
from unfooled.core.goal import advantage
from unfooled.core.threat import Threat

ALPHABET = string.ascii_lowercase + " "


def edits(a: str, b: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of one character."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row, above = [i], row
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


@dataclass(frozen=True)
class Edits(Threat):
    """All texts within so many single-character edits."""

    eps: float = math.inf

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.eps)

    def check(self, x: Any) -> None:
        if not isinstance(x, list) or not all(isinstance(row, str) for row in x):
            raise uf.InputError("edits need a list of texts.")

    def distance(self, x_adv: Any, x: Any) -> Tensor:
        return torch.tensor([float(edits(a, b)) for a, b in zip(x_adv, x, strict=True)], dtype=torch.float64)

    def contains(self, x_adv: Any, x: Any) -> Tensor:
        return self.distance(x_adv, x) <= self.eps


class Bag(nn.Module):
    """Scores from counts of characters, each text on its own."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, len(ALPHABET), generator=g))
        self.rows = self.calls = 0

    def forward(self, texts: list[str]) -> Tensor:
        assert isinstance(texts, list) and all(isinstance(t, str) for t in texts)
        self.calls += 1
        self.rows += len(texts)
        counts = torch.tensor([[t.count(c) for c in ALPHABET] for t in texts], dtype=torch.float32)
        return (counts[:, None] * self.weight).sum(-1)


@dataclass
class Draft:
    t: Tensor
    text: list[str]
    lead: Tensor


@dataclass(frozen=True, repr=False)
class RandomEdits(Attack[Draft]):
    """One random edit of the best text so far at each step, kept where the margin grows."""

    access = uf.Access.SCORES
    inside = False  # it does not count its edits: the engine leaves out what is too far
    queries: int = 40
    tries: int = 1

    @property
    def steps(self) -> int:
        return self.queries

    def restarts(self, classes: int) -> int:
        return self.tries

    def init(self, p: Problem) -> Draft:
        assert isinstance(p.x0, list)
        return Draft(torch.zeros_like(p.y), p.x0, torch.full(p.y.shape, -torch.inf))

    def step(self, p: Problem, s: Draft) -> tuple[Draft, Trial]:
        kind, letter = p.noise.integers(s.t, 3, 1), p.noise.integers(s.t, len(ALPHABET), 2)
        place = p.noise.integers(s.t, torch.tensor([len(text) + 1 for text in s.text]), 3)
        rows = zip(s.text, kind.tolist(), letter.tolist(), place.tolist(), strict=True)
        texts = [t[:i] + (ALPHABET[c] if k else "") + t[i + (k < 2) :] for t, k, c, i in rows]
        answer = p.oracle.scores(texts)
        allowed = p.threat.contains(texts, p.x0)
        lead = torch.where(allowed, advantage(answer, p.y, p.to), -torch.inf)
        better = lead > s.lead
        kept = _rows.where(better, texts, s.text)
        return Draft(s.t + 1, kept, torch.where(better, lead, s.lead)), Trial(texts, answer)


TEXTS = [
    "the quick brown fox", "jumps over", "the lazy dog", "a", "adversarial", "examples are",
    "not bugs", "they are features", "robustness may be", "at odds with accuracy", "explaining and", "harnessing",
    "zzz", "towards deep learning models",
]  # fmt: skip


def case() -> tuple[Bag, list[str], Tensor]:
    target = Bag()
    y = target(TEXTS).argmax(1)
    y[-1] = (y[-1] + 1) % 3
    target.rows = target.calls = 0
    return target, list(TEXTS), y


def test_texts_are_attacked_and_what_counts_is_checked() -> None:
    target, x, y = case()
    out = uf.run(RandomEdits(), target, x, y, Edits(2))
    assert out.status[-1] is Status.MISCLASSIFIED and Status.BROKEN in out.status and Status.SURVIVED in out.status
    assert isinstance(out.x_adv, list) and x == TEXTS
    for i, (text, changed) in enumerate(zip(x, out.x_adv, strict=True)):
        if out.success[i]:
            assert 1 <= edits(text, changed) <= 2 and out.distance[i] == edits(text, changed)
            assert int(target([changed]).argmax()) == int(out.label[i]) != int(y[i])
        else:
            assert changed == text and out.distance[i].isnan()
    assert out.vanished == 0


def test_the_ledger_counts_texts() -> None:
    for batch_size in (1, 4, 64):
        target, x, y = case()
        out = uf.run(RandomEdits(tries=2), target, x, y, Edits(1), batch_size=batch_size)
        assert out.forward.sum() + out.padding[0] == target.rows and out.backward.sum() == 0
        assert out.forward[-1] == 1
        assert all(f == 81 for f, s in zip(out.forward, out.status, strict=True) if s is Status.SURVIVED)


def test_a_text_alone_is_the_text_in_any_batch_and_order() -> None:
    target, x, y = case()
    whole = uf.run(RandomEdits(), target, x, y, Edits(2))
    order = np.random.default_rng(0).permutation(len(x))
    mixed = uf.run(RandomEdits(), target, [x[i] for i in order], y[order], Edits(2), batch_size=3)
    assert [whole.x_adv[i] for i in order] == mixed.x_adv and [whole.status[i] for i in order] == mixed.status
    for i in range(4):
        alone = uf.run(RandomEdits(), target, x[i : i + 1], y[i : i + 1], Edits(2))
        assert alone.x_adv == whole.x_adv[i : i + 1] and alone.forward[0] == whole.forward[i]


def test_more_edits_break_no_fewer_and_none_break_nothing() -> None:
    target, x, y = case()
    broken = [int(uf.run(RandomEdits(60), target, x, y, Edits(n)).success.sum()) for n in (0, 1, 2, 4, 50)]
    assert broken[0] == 0 and broken == sorted(broken) and broken[-1] >= len(x) - 2


def test_without_a_limit_the_fewest_edits_found_count() -> None:
    target, x, y = case()
    out = uf.run(RandomEdits(60, tries=2), target, x, y, Edits())
    near = uf.run(RandomEdits(60, tries=2), target, x, y, Edits(2))
    assert out.success.sum() >= near.success.sum()
    for i in np.flatnonzero(out.success.numpy()):
        assert edits(x[i], out.x_adv[i]) == out.distance[i]


def test_budgets_goals_access_and_memory_hold_for_texts() -> None:
    target, x, y = case()
    out = uf.run(RandomEdits(), target, x, y, Edits(2), queries=9)
    assert (out.forward <= 9).all() and target.rows == out.forward.sum() + out.padding[0]
    to = (y + 1) % 3
    aimed = uf.run(RandomEdits(200), target, x, y, Edits(6), goal=uf.Targeted(to=to))
    assert aimed.success.any() and (aimed.label[aimed.success] == to[aimed.success]).all()
    with pytest.raises(uf.AccessError):
        uf.run(RandomEdits(), target, x, y, Edits(2), access=uf.Access.LABEL)

    def cramped(texts: list[str]) -> Tensor:
        if len(texts) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return target(texts)

    small, wide = (uf.run(RandomEdits(), t, x, y, Edits(2)) for t in (cramped, target))
    assert small.x_adv == wide.x_adv and small.status == wide.status


def test_attacks_on_tensors_say_that_they_need_tensors() -> None:
    target, x, y = case()
    with pytest.raises(uf.InputError, match="tensors"):
        uf.run(attacks.pgd(), target, x, y, Edits(2))
    with pytest.raises(uf.InputError, match="tensors"):
        uf.run(attacks.square(), target, x, y, uf.linf(0.1))
    with pytest.raises(uf.InputError, match="list of texts"):
        uf.run(RandomEdits(), target, torch.rand(3, 4), y[:3], Edits(2))
    mixed = uf.run([RandomEdits(), attacks.pgd()], target, x, y, Edits(2))
    assert [bool(row.skipped) for row in mixed.attacks] == [False, True]


def test_an_engine_that_trusts_the_attack_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same law on a mutant: texts that are too far must not count."""

    class Far(RandomEdits):
        inside = True  # which is not true

        def step(self, p: Problem, s: Draft) -> tuple[Draft, Trial]:
            texts = [text + "q" * 9 + "x" * 9 for text in s.text]
            return replace(s, t=s.t + 1), Trial(texts, p.oracle.scores(texts))

    target, x, y = case()
    honest = uf.run(Far(3), target, x, y, Edits(2))
    assert not honest.success.any() and honest.vanished > 0

    class Trusting(Engine):
        def _recheck(self, attack: Any, slots: Any, index: np.ndarray) -> np.ndarray:
            self.pool.status[slots.example[index]] = Status.BROKEN
            return np.ones(len(index), dtype=bool)

    monkeypatch.setattr(run_module, "Engine", Trusting)
    assert uf.run(Far(3), target, x, y, Edits(2)).success.any()


def test_rows_of_every_kind_are_taken_put_and_chosen() -> None:
    @dataclass
    class State:
        a: Tensor
        b: list[str]
        c: dict[str, Tensor]
        d: tuple[Tensor, None]
        e: np.ndarray
        f: float = 2.0

    def state(offset: int) -> State:
        n = torch.arange(4) + offset
        return State(n, [str(i) for i in n.tolist()], {"c": n.view(4, 1)}, (n.double(), None), n.numpy().copy())

    def values(s: State) -> list[list[Any]]:
        return [s.a.tolist(), [int(v) for v in s.b], s.c["c"].flatten().tolist(), s.d[0].tolist(), s.e.tolist()]

    old, new = state(0), state(10)
    index = np.array([3, 1])
    assert values(_rows.take(old, index)) == [[3, 1]] * 5
    assert values(_rows.put(old, index, _rows.take(new, index))) == [[0, 11, 2, 13]] * 5
    assert values(old) == [[0, 1, 2, 3]] * 5, "put changed its argument"
    mask = torch.tensor([True, False, False, True])
    assert values(_rows.where(mask, new, old)) == [[10, 1, 2, 13]] * 5
    assert values(_rows.take(old, np.array([], dtype=np.int64))) == [[]] * 5
    assert values(
        _rows.put(old, np.array([], dtype=np.int64), _rows.take(new, np.array([], dtype=np.int64)))
    ) == values(old)
