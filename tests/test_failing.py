"""A target that raises on some inputs: those examples leave, counted and bounded, and the others go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unfooled as uf
from benchmarks.survive import bits
from tests.nets import RowNet
from unfooled import Status
from unfooled.core.journal import Journal
from unfooled.errors import TargetError

CASCADE = ["pgd(steps=4, restarts=2)", "apgd(steps=5)", "square(queries=9)"]
THREAT = uf.linf(0.05)


NET = RowNet(12, hidden=16)
X = torch.rand(24, 12, generator=torch.Generator().manual_seed(1))
Y = NET(X).argmax(1)
BAD = [3, 7, 15]


def raising(when: str, error: Callable[[], BaseException]) -> Callable[[Tensor], Tensor]:
    """Return the network, which raises on three examples: on the clean ones, or on what attacks made of them."""

    def target(v: Tensor) -> Tensor:
        near = torch.cdist(v.detach(), X[BAD]).amin(1)
        hit = near < 1e-6 if when == "clean" else (near < 0.2) & (near > 1e-3)
        if bool(hit.any()):
            raise error()
        scores: Tensor = NET(v)
        return scores

    return target


def broke() -> BaseException:
    return ValueError("bad \x1b[31mpixel\nsecond line")


def run(target: Callable[..., Any], n: slice | list[int] = slice(None), **more: Any) -> uf.Run:
    return uf.run(CASCADE, target, X[n], Y[n], THREAT, **({"batch_size": 5} | more))


@pytest.mark.parametrize("when", ["clean", "attacked"])
@pytest.mark.parametrize("access", [None, uf.Access.SCORES])
@pytest.mark.parametrize("width", [1, 5, 64])
def test_the_examples_that_raise_leave_and_change_no_other(when: str, access: uf.Access | None, width: int) -> None:
    out = run(raising(when, broke), access=access, batch_size=width)
    free = run(NET, access=access, batch_size=width)
    assert [i for i, s in enumerate(out.status) if s is Status.FAILED] == BAD
    others = [i for i in range(len(Y)) if i not in BAD]
    assert [out.status[i] for i in others] == [free.status[i] for i in others]
    assert isinstance(out.x_adv, Tensor) and isinstance(free.x_adv, Tensor)
    assert torch.equal(out.x_adv[others], free.x_adv[others]) and torch.equal(out.margin[others], free.margin[others])
    assert out.forward[others].tolist() == free.forward[others].tolist()
    assert torch.equal(out.x_adv[BAD], X[BAD]) and not out.success[BAD].any()
    assert out.notes == ["The target raised on 3 of 24 examples, first ValueError: bad  [31mpixel; the others went on."]
    assert sum(row.broken for row in out.attacks) == int(out.success.sum())
    standing = sum(s in (Status.SURVIVED, Status.FAILED) for s in out.status)
    assert out.attacks[-1].robust_accuracy_after == standing / len(Y)


def test_the_ledger_of_a_failing_target_is_exact() -> None:
    seen = [0]
    inner = raising("attacked", broke)

    def counting(v: Tensor) -> Tensor:
        scores = inner(v)
        seen[0] += len(v)
        return scores

    out = run(counting)
    assert out.forward.sum() + out.padding[0] + out.overrun[0] == seen[0]
    assert out.overrun[0] > 0


def test_a_raise_in_the_recheck_alone() -> None:
    """The re-check alone asks without gradients for a point that fools."""

    def target(v: Tensor) -> Tensor:
        scores: Tensor = NET(v)
        fooled = scores.argmax(1) != Y[torch.cdist(v, X).argmin(1)]
        if not torch.is_grad_enabled() and bool(fooled.any()):
            raise RuntimeError("no gradients, no answer")
        return scores

    free = uf.run("pgd(steps=4)", NET, X, Y, THREAT, batch_size=5)
    assert free.success.any() and not free.success.all()
    out = uf.run("pgd(steps=4)", target, X, Y, THREAT, batch_size=5)
    assert not out.success.any() and out.vanished == 0
    assert {s for s, won in zip(out.status, free.success.tolist(), strict=True) if won} == {Status.FAILED}


def test_a_target_that_raises_always_is_a_sentence() -> None:
    def never(v: Tensor) -> Tensor:
        raise ValueError("no weights\nhere")

    with pytest.raises(TargetError, match="raised on every input, first ValueError: no weights\\."):
        run(never)
    calls = [0]

    def once(v: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 1:
            raise ValueError("")
        scores: Tensor = NET(v)
        return scores

    with pytest.raises(TargetError, match="every input that was attacked, first ValueError\\."):
        run(once, batch_size=64)


def test_what_no_input_alone_brings_about_is_raised_as_it_is() -> None:
    def picky(v: Tensor) -> Tensor:
        if len(v) > 2:
            raise RuntimeError("at most two")
        scores: Tensor = NET(v)
        return scores

    with pytest.raises(RuntimeError, match="at most two"):
        run(picky)


def test_errors_of_others_are_not_the_targets() -> None:
    def told(progress: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(NET, progress=told)


def test_failures_are_in_the_journal(tmp_path: Path) -> None:
    for when in ("clean", "attacked"):
        path = tmp_path / f"{when}.jsonl"
        with Journal(path, {}) as journal:
            first = bits(run(raising(when, broke), journal=journal, batch_size=1))
        data = path.read_bytes()
        for share in (0.1, 0.4, 0.8, 1.0):
            path.write_bytes(data[: int(share * len(data))])
            with Journal(path, {}) as journal:
                assert bits(run(raising(when, broke), journal=journal, batch_size=1)) == first
