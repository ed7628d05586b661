"""The journal: torn, damaged, full, shared and foreign files; and runs that are killed until they are done."""

import errno
import functools
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unfooled as uf
from benchmarks import survive
from benchmarks.survive import bits
from tests.nets import RowNet
from unfooled.core import journal as module
from unfooled.core.journal import Journal, run_key
from unfooled.errors import InputError, StorageError

Net = functools.partial(RowNet, 12, hidden=16)
CASCADE = ["pgd(steps=3, restarts=2)", "apgd(steps=5)", "square(queries=12)"]
THREAT = uf.linf(0.03)


def attack(
    journal: Journal | None = None, n: int = 21, net: Callable[[Tensor], Tensor] | None = None, **more: Any
) -> uf.Run:
    x = torch.rand(n, 12, generator=torch.Generator().manual_seed(1))
    y = Net()(x).argmax(1)
    settings = {"batch_size": 2, "phase": "suite", **more}
    return uf.run(CASCADE, net or Net(), x, y, THREAT, journal=journal, **settings)


KEY = {"target": "a1b2", "eps": "0.03", "seed": 0, "width": 2}


def done(path: Path, key: dict[str, Any] | None = None, **more: Any) -> uf.Run:
    with Journal(path, key or KEY) as journal:
        run = attack(journal, **more)
        journal.finish()
    return run


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    return bits(attack())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    done(tmp_path / "whole.jsonl")
    return tmp_path / "whole.jsonl"


# ---- the same run with, without and from a journal


def test_a_journal_changes_nothing_and_holds_everything(tmp_path: Path, undisturbed: list[Any]) -> None:
    path = tmp_path / "j.jsonl"
    first = done(path)
    assert bits(first) == undisturbed
    net = Net()
    again = done(path, net=net)
    assert bits(again) == undisturbed and net.rows == 0, "everything was known"
    assert [r.seconds for r in again.attacks] == [r.seconds for r in first.attacks]
    lines = [json.loads(line[9:]) for line in path.read_text().splitlines()]
    chunks = [line for line in lines if "chunk" in line]
    assert len(chunks) > 6 and "finished" in lines[-1] and lines[0]["journal"] == 1
    attacked = {(line["example"], line["attack"]) for line in lines if "attack" in line}
    assert len(attacked) == sum(row.attempted for row in first.attacks), "one record per example and attack"
    both = first.forward.sum() + first.padding[0] + first.overrun[0]
    assert sum(c["totals"]["forward"] for c in chunks) == both, "totals follow from the journal alone"


def test_a_resumed_run_asks_for_what_is_missing_alone(whole: Path, undisturbed: list[Any]) -> None:
    data = whole.read_bytes()
    seen = []
    ends = [i + 1 for i, c in enumerate(data) if c == ord("\n")]
    for end in ends[:: max(1, len(ends) // 5)]:
        whole.write_bytes(data[:end])
        net = Net()
        assert bits(done(whole, net=net)) == undisturbed
        seen.append(net.rows)
    assert seen == sorted(seen, reverse=True) and seen[0] > seen[-1]


def test_random_targets_repeat_in_a_resumed_run(tmp_path: Path) -> None:
    """What draws from torch's, numpy's or random's generators draws the same in the chunks that are done again."""

    def noisy(x: Tensor) -> Tensor:
        net = Net()
        return net(x + 0.01 * torch.randn_like(x) + 0.01 * float(np.random.rand()) + 0.01 * random.random())

    path = tmp_path / "j.jsonl"
    torch.manual_seed(5)
    first = bits(done(path, net=noisy))
    data = path.read_bytes()
    torch.manual_seed(6)
    np.random.seed(7)
    random.seed(8)
    for share in (0.3, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        assert bits(done(path, net=noisy)) == first
    assert bits(attack(net=noisy)) == first, "and with no journal at all"


def test_halved_slots_and_their_notes_are_remembered(tmp_path: Path) -> None:
    net = Net()

    def cramped(x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return net(x)

    path = tmp_path / "j.jsonl"
    first = done(path, net=cramped, batch_size=8)
    assert any("Out of memory" in note for note in first.notes)
    data = path.read_bytes()
    for share in (0.3, 0.7, 1):
        path.write_bytes(data[: int(share * len(data))])
        assert bits(done(path, net=cramped, batch_size=8)) == bits(first)


def test_ctrl_c_keeps_the_finished_chunks(tmp_path: Path, undisturbed: list[Any]) -> None:
    path, net = tmp_path / "j.jsonl", Net()

    def stopping(x: Tensor) -> Tensor:
        if net.rows > 150:
            raise KeyboardInterrupt
        return net(x)

    with Journal(path, KEY) as journal:
        half = attack(journal, net=stopping, salvage=True)
        assert half.interrupted and not journal.finished
    fresh = Net()
    assert bits(done(path, net=fresh)) == undisturbed
    assert fresh.rows + net.rows < 1.3 * sum(r.forward for r in attack().attacks)


def test_what_the_deadline_cut_off_is_done_by_the_resumed_run(tmp_path: Path, undisturbed: list[Any]) -> None:
    with Journal(tmp_path / "j.jsonl", KEY) as journal:
        late = attack(journal, deadline=0.0)
    assert set(late.status) == {uf.Status.NOT_RUN}
    assert bits(done(tmp_path / "j.jsonl")) == undisturbed


def test_texts_and_points_keep_every_bit() -> None:
    from unfooled.core.pool import Pool

    values = torch.tensor([[0.1, -0.0], [1 / 3, 1e-45], [0.5, 0.25]])
    pool = Pool.of(torch.zeros(3, 2), torch.zeros(3).long(), np.arange(3), torch.float32)
    pool.best, pool.x_adv = values.clone(), values.clone()
    pool.x_adv[1] = 0
    pool.scores = torch.tensor([[torch.nan, -torch.inf], [3e38, 1e-45], [0.1, 0.2]])
    pool.lead[:] = torch.tensor([0.1, -torch.inf, torch.nan])
    rows = json.loads(json.dumps(module.pack(pool, np.array([2, 0, 1]), "a")))
    assert "x_adv" not in rows[0] and "x_adv" in rows[2]
    other = Pool.of(torch.zeros(3, 2), torch.zeros(3).long(), np.arange(3), torch.float32)
    other.scores = torch.zeros(3, 2)
    module.unpack(other, rows)
    for name in ("best", "x_adv", "scores", "lead"):
        a, b = getattr(pool, name), getattr(other, name)
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), name
    words = Pool.of(["a", "b\n\ud800"], torch.zeros(2).long(), np.arange(2), torch.float32)
    words.best = ["a", "ä\u2028\ud800"]
    words.x_adv = ["a", "b\n\ud800"]
    copy = Pool.of(["a", "b\n\ud800"], torch.zeros(2).long(), np.arange(2), torch.float32)
    module.unpack(copy, json.loads(json.dumps(module.pack(words, np.arange(2), "a"))))
    assert copy.best == words.best and copy.x_adv == words.x_adv


def test_small_results_are_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"figure": 0.1, "sentence": "zwölf\n\u2028"}

    for _ in range(3):
        with Journal(tmp_path / "j.jsonl", KEY) as journal:
            assert journal.memo("doctor", compute) == {"figure": 0.1, "sentence": "zwölf\n\u2028"}
            assert journal.memo("doctor", compute) == {"figure": 0.1, "sentence": "zwölf\n\u2028"}
    assert len(calls) == 1


def test_equal_phases_of_different_runs_are_told_apart(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", KEY) as journal:
        a, b, c = attack(journal), attack(journal, seed=1), attack(journal, n=11)
    assert bits(a) == bits(attack()) and bits(b) == bits(attack(seed=1)) and bits(c) == bits(attack(n=11))
    with Journal(tmp_path / "j.jsonl", KEY) as journal:
        assert bits(attack(journal)) == bits(a) and bits(attack(journal, seed=1)) == bits(b)


# ---- torn and damaged files


def small(path: Path, key: dict[str, Any] | None = None) -> list[Any]:
    with Journal(path, key or KEY) as journal:
        x, y = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
        run = uf.run(["fgsm()", "square(queries=2)"], lambda v: torch.stack([0.1 - v[:, 0] * 0, v[:, 0] - v[:, 1]], 1),
                     x, y, uf.linf(0.05), batch_size=1, journal=journal)  # fmt: skip
        note = journal.memo("note", lambda: "a note")
        journal.finish()
        return [*bits(run), note]


def test_a_journal_cut_at_any_byte_holds_its_whole_chunks(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    small(path)
    lines = path.read_bytes().splitlines(keepends=True)
    ends, at = [0], 0
    for line in lines:
        at += len(line)
        if b'"example"' not in line[:20]:
            ends.append(at)
    for cut in range(at):
        path.write_bytes(b"".join(lines)[:cut])
        with Journal(path, KEY) as journal:
            whole = [end for end in ends if end <= cut]
            assert journal.chunks == max(0, len(whole) - 2) and not journal.finished
        assert path.stat().st_size == max(whole[-1], ends[1]), f"cut at byte {cut}"


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_whose_journal_was_cut_at_any_byte_ends_equal(tmp_path: Path, stride: int) -> None:
    path = tmp_path / "j.jsonl"
    expected = small(path)
    data = path.read_bytes()
    for end in range(0, len(data) + 1, stride):
        path.write_bytes(data[:end])
        assert small(path) == expected, f"cut at byte {end}"


def test_a_flipped_byte_is_mended_or_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    expected = small(path)
    data = path.read_bytes()
    g, refused, mended = random.Random(0), 0, 0
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= g.randrange(1, 256)
        path.write_bytes(broken)
        try:
            found = small(path)
        except InputError as error:
            refused += 1
            line = data[:at].count(b"\n") + 1
            assert f"Line {line} of the journal" in str(error)
            assert path.read_bytes() == broken, "a refused file stays as it is"
        else:
            mended += 1
            assert found == expected, f"byte {at} flipped"
            assert at >= len(data) - 2 * max(map(len, data.splitlines(keepends=True))), "only the tail is cut"
    assert refused > 0.5 * len(data) and mended > 0


@pytest.mark.parametrize("change", ["drop", "double", "swap"])
def test_whole_lines_that_are_missing_or_moved_are_seen(tmp_path: Path, change: str) -> None:
    path = tmp_path / "j.jsonl"
    expected = small(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(1, len(lines) - 3):
        other = list(lines)
        if change == "drop":
            del other[at]
        elif change == "double":
            other.insert(at, lines[at])
        else:
            other[at], other[at + 1] = other[at + 1], other[at]
        path.write_bytes(b"".join(other))
        with pytest.raises(InputError, match=r"Line \d+ of the journal"):
            small(path)
    path.write_bytes(b"".join(lines))
    assert small(path) == expected


def test_what_is_no_journal_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("my notes", "my\nnotes\n", "\n", '{"journal": 1}\n'):
        path.write_text(text)
        with pytest.raises(InputError, match="Line 1 of the journal"):
            Journal(path, KEY)
        assert path.read_text() == text


# ---- foreign, shared and full


@pytest.mark.parametrize("field", list(KEY))
def test_another_run_is_refused_by_the_field_that_differs(whole: Path, field: str) -> None:
    before = whole.read_bytes()
    with pytest.raises(InputError, match=f"belongs to another run: {field} differs \\({KEY[field]} there, other here"):
        Journal(whole, KEY | {field: "other"})
    with pytest.raises(InputError, match="more differs \\(None there, 1 here"):
        Journal(whole, KEY | {"more": 1})
    assert whole.read_bytes() == before


def test_the_key_of_a_run_names_everything_that_decides_its_bits() -> None:
    net, x, y = Net(), torch.rand(4, 12), torch.zeros(4, dtype=torch.int64)
    target = uf.Target(net)
    given: dict[str, Any] = {
        "target": target,
        "x": x,
        "y": y,
        "threat": THREAT,
        "attacks": CASCADE,
        "width": 4,
        "seed": 0,
    }
    key = run_key(**given)
    assert json.loads(json.dumps(key)) == key == run_key(**given)
    other = Net()
    with torch.no_grad():
        other.b[0, 0] += 1e-6
    changes: dict[str, dict[str, Any]] = {
        "target": {"target": uf.Target(other)}, "data": {"x": x + 1e-7}, "eps": {"threat": uf.linf(0.03 + 1e-12)},
        "attacks": {"attacks": CASCADE[:2]}, "goal": {"goal": uf.Targeted(to=torch.tensor([1, 2, 3, 0]))},
        "access": {"access": uf.Access.SCORES}, "queries": {"queries": 9}, "seed": {"seed": 1}, "width": {"width": 8},
        "dtype": {"target": uf.Target(Net().double())}, "bounds": {"target": uf.Target(net, bounds=(0, 255))},
    }  # fmt: skip
    for field, change in changes.items():
        assert run_key(**(given | change))[field] != key[field], field
    torch.set_num_threads(2)
    try:
        assert run_key(**given)["threads"] != key["threads"]
    finally:
        torch.set_num_threads(1)


def test_two_writers_are_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, KEY):
        with pytest.raises(InputError, match="Another process is writing"):
            Journal(path, KEY)
    Journal(path, KEY).close()
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        journal = Journal(path, KEY)
        os.write(tell, b"%d" % journal.chunks)
        os.kill(os.getpid(), signal.SIGSTOP)  # stopped with the lock held
        os._exit(1)
    os.read(ready, 1)
    with pytest.raises(InputError, match="Another process is writing"):
        Journal(path, KEY)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Journal(path, KEY).close()
    os.close(ready)
    os.close(tell)


@pytest.mark.parametrize("room", [0, 1, 700, 5000, 20000])
def test_a_full_disk_stops_with_a_sentence_and_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, undisturbed: list[Any]
) -> None:
    path, real = tmp_path / "j.jsonl", os.write

    def short(file: int, data: Any) -> int:
        left = room - os.fstat(file).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, bytes(data)[: min(left, 100)])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(StorageError, match=r"No space left on device.*what was finished is kept"):
            done(path)
    kept = path.read_bytes()
    assert len(kept) <= room and (not kept or kept.endswith(b"\n"))
    net = Net()
    assert bits(done(path, net=net)) == undisturbed
    if room == 20000:
        full = Net()
        attack(net=full)
        assert net.rows < full.rows, "what was finished is not done again"


def test_an_interrupt_inside_a_write_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    path, real, calls = tmp_path / "j.jsonl", os.write, [0]

    def interrupted(file: int, data: Any) -> int:
        calls[0] += 1
        if calls[0] == 9:
            real(file, bytes(data)[:33])
            raise KeyboardInterrupt
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with Journal(path, KEY) as journal:
            with pytest.raises(KeyboardInterrupt):
                attack(journal)
            journal.memo("after", lambda: 1)
    assert bits(done(path)) == undisturbed


# ---- kill -9


def test_killed_at_random_moments_until_it_is_done_a_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    count = survive.until_done(tmp_path, seed=0, kills=6)
    assert count >= 6


@pytest.mark.parametrize("point", survive.POINTS)
def test_killed_inside_every_step_of_the_work(tmp_path: Path, point: str) -> None:
    assert survive.at_point(tmp_path, point, times=2) == 2


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    total = 0
    for seed in range(1, 40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        total += survive.until_done(folder, seed=seed, kills=12)
        if total >= 100:
            break
    assert total >= 100
