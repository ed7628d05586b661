"""HTTP targets: no query uncounted, no wrong answer taken, no key shown; attacks end with their budget, not before."""

import email.utils
import gc
import json
import logging
import os
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import unfooled as uf
from unfooled.cli import _app
from unfooled.core.memory import Snapshot
from unfooled.errors import InputError, MissingExtra, StorageError, TargetError, Unavailable
from unfooled.targets import http, resolve
from unfooled.targets._http import retry_after
from unfooled.targets._ledger import Ledger

from .serving import Server, scores, serving

SECRET = "sk-Zq7-do-not-show-me-41"


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Waits of a second or more are counted and not waited for; shorter ones are real."""
    waits, sleep = [], time.sleep

    def quick(seconds: float) -> None:
        waits.append(seconds)
        sleep(min(seconds, 0.02) if sys._getframe(1).f_globals["__name__"].startswith("unfooled") else seconds)

    monkeypatch.setattr(time, "sleep", quick)
    return waits


X = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(0))


# --- asking -----------------------------------------------------------------------------------------------------------


def test_scores_come_back_exactly_and_every_row_is_counted(server):
    target = http(server.url(), batch=3)
    z = target.scores(X)
    assert z.dtype == torch.float64 and np.array_equal(z.numpy(), scores(X.double().numpy()))
    assert server.seen == 3 and server.served == 7
    assert target.module.counts == {"spent": 7, "answered": 7, "lost": 0, "released": 0, "cached": 0}


@pytest.mark.parametrize("attack", ["square(queries=150)", "ray(queries=150)"])
def test_black_box_attacks_break_what_is_served(server, attack):
    x = torch.full((6, 1, 4, 4), 0.45)
    target = http(server.url(), batch=64)
    found = uf.run(attack, target, x, torch.zeros(6, dtype=torch.int64), uf.linf(0.1))
    assert found.success.all()
    assert (scores(found.x_adv.double().numpy()).argmax(1) == 1).all()
    sent = int(found.forward.sum() + found.padding[0] + found.overrun[0])
    assert sent == target.sent[0] == server.served == target.module.counts["spent"]


def test_gradient_attacks_are_refused(server):
    with pytest.raises(uf.AccessError):
        uf.run("pgd()", http(server.url()), X, torch.zeros(7, dtype=torch.int64), uf.linf(0.1))
    assert server.seen == 0


def test_labels_alone_are_enough_for_rays(server):
    server.plan.extend(["labels"] * 500)
    target = http(server.url(), labels=True, classes=["dark", "bright"], batch=64)
    x = torch.full((4, 1, 4, 4), 0.45)
    found = uf.run("ray(queries=60)", target, x, torch.zeros(4, dtype=torch.int64), uf.linf(0.1))
    assert found.success.all() and target.classes == ["dark", "bright"]


def test_classes_may_come_by_name(server):
    server.plan.extend(["named", "named", "well"])
    target = http(server.url(), labels=True, classes=["dark", "bright"])
    assert torch.equal(target.scores(X).argmax(1), torch.from_numpy(scores(X.double().numpy()).argmax(1)))
    other = http(server.url(), labels=True, classes=["dim", "bright"], retries=0)
    with pytest.raises(Unavailable) as error:
        other.scores(X)
    assert "classes that are not known" in said(error)


def test_other_forms_of_question_and_answer_go_through_encode_and_decode(server):
    target = http(
        server.url(),
        encode=lambda x: {"inputs": x.reshape(len(x), -1).tolist(), "model": "v2"},
        decode=lambda answer: np.asarray(answer["scores"])[:, ::-1],
    )
    assert np.array_equal(target.scores(X).numpy(), scores(X.double().numpy())[:, ::-1])


# --- answers that are not taken ---------------------------------------------------------------------------------------

WRONG = [
    "500", "502", "503", "408", "429 0", "cut", "text", "nan", "inf", "deep", "huge", "short", "twice", "ragged",
    "stale", "other", "contradiction",
]  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_answer_is_asked_for_again(server, how):
    server.plan.append(how)
    target = http(server.url(), retries=1)
    assert np.array_equal(target.scores(X).numpy(), scores(X.double().numpy()))
    assert server.seen == 2 and len(set(server.names)) == 1  # the same request, told to be the same
    counts = target.module.counts
    if how.startswith("429"):
        assert counts["spent"] == 7 and counts["released"] == 7
    else:
        assert counts["spent"] == 14 and counts["lost"] == 7
    assert server.served <= counts["spent"]


@pytest.mark.parametrize("how", [*WRONG, "slow 2"])
def test_an_endpoint_that_stays_wrong_is_given_up_in_a_sentence(server, how):
    server.plan.extend([how] * 10)
    with pytest.raises(Unavailable) as error:
        http(server.url(), retries=2, timeout=0.3 if how.startswith("slow") else 30).scores(X)
    assert "3 requests" in said(error) and server.seen == 3


def test_the_answer_to_another_request_is_not_taken(server):
    target = http(server.url())
    target.scores(1 - X)
    server.plan.append("stale")  # as many finite rows as were asked for, of other inputs
    assert np.array_equal(target.scores(X).numpy(), scores(X.double().numpy()))
    assert server.seen == 3 and target.module.counts["lost"] == 7


def test_rows_in_another_order_are_put_back(server):
    server.plan.append("shuffled")
    assert np.array_equal(http(server.url()).scores(X).numpy(), scores(X.double().numpy()))
    assert server.seen == 1


def test_slow_answers_end_with_the_timeout_also_when_they_drip(server):
    for how in ("slow 9", "drip 0.05"):  # 15 s in all, none of the waits long
        server.plan.append(how)
        target, begun = http(server.url(), timeout=1, retries=1), time.monotonic()
        assert target.scores(X).shape == (7, 2)
        assert time.monotonic() - begun < 6
        assert target.module.counts["lost"] == 7  # it may have been billed


def test_a_refused_input_is_the_inputs_fault_and_a_refused_key_everybodys(server):
    x, y = torch.full((6, 1, 2, 2), 0.2), torch.zeros(6, dtype=torch.int64)
    server.picky, x[2, 0, 0, 0] = True, 1.0
    found = uf.run("square(queries=20)", http(server.url()), x, y, uf.linf(0.01))
    assert [s.value for s in found.status] == ["survived"] * 2 + ["failed"] + ["survived"] * 3
    assert "refuses these inputs" in " ".join(found.notes)
    server.picky = False
    for state, word in (("401", "refuses the key"), ("403", "refuses the key"), ("404", "404"), ("302", "elsewhere")):
        server.plan.clear()
        server.plan.append(state)
        seen = server.seen
        with pytest.raises(Unavailable) as error:
            http(server.url()).scores(x)
        assert word in said(error) and server.seen == seen + 1


def test_shapes_that_change_are_an_error(server):
    server.plan.extend(["well", "labels"])
    with pytest.raises(TargetError) as error:
        http(server.url(), batch=4).scores(X)
    assert "different shapes" in said(error)


def test_retry_after_is_waited_for_in_seconds_and_dates(server, no_waiting):
    server.plan.extend(["429 7", "503 " + email.utils.formatdate(time.time() + 90, usegmt=True), "429 soon"])
    http(server.url()).scores(X)
    assert no_waiting[0] == 7 and 85 < no_waiting[1] <= 90 and 0 < no_waiting[2] <= 1
    server.plan.append("429 99999")
    with pytest.raises(Unavailable) as error:
        http(server.url()).scores(X)
    assert "asks to wait 99,999 s" in said(error)
    assert [retry_after(v) for v in ("", "soon", "-3", "1e9", "5")] == [None, None, None, None, 5.0]


def test_waits_grow_and_differ(server, no_waiting):
    server.plan.extend(["500"] * 6)
    with pytest.raises(Unavailable):
        http(server.url(), retries=5).scores(X[:1])
    waits = [w for w in no_waiting if w]
    assert len(waits) == 5 and len(set(waits)) == 5
    assert all(0.125 * 2**i <= w <= 0.25 * 2**i for i, w in enumerate(waits))


def test_the_rate_is_kept(server, monkeypatch):
    monkeypatch.undo()
    http(server.url(), batch=1, rate=20).scores(X)
    assert server.times[-1] - server.times[0] > 5.5 / 20 and np.diff(server.times)[1:].min() > 0.02


def test_the_cache_asks_once(server):
    target = http(server.url(), cache=True)
    twice = torch.cat([X, X[:3]])
    for _ in range(2):
        assert np.array_equal(target.scores(twice).numpy(), scores(twice.double().numpy()))
    assert server.served == 7 and target.module.counts == {
        "spent": 7, "answered": 7, "lost": 0, "released": 0, "cached": 13,
    }  # fmt: skip


# --- the budget -------------------------------------------------------------------------------------------------------


def test_an_attack_ends_with_the_budget_and_keeps_what_it_found(server, tmp_path):
    x = torch.full((12, 1, 4, 4), 0.3)
    x[:6] = 0.48  # these fall at once
    y = torch.zeros(12, dtype=torch.int64)
    target = http(server.url(), budget=200, ledger=tmp_path / "ledger", batch=5)
    found = uf.run("square(queries=500)", target, x, y, uf.linf(0.05))
    assert found.success[:6].all() and not found.success[6:].any() and found.interrupted
    assert {s.value for s in found.status[6:]} == {"not_run"}
    assert any("budget of 200 queries is spent" in note for note in found.notes)
    assert server.served == target.module.counts["spent"] <= 200
    with pytest.raises(Unavailable):
        target.scores(x)
    target.module.close()
    again = http(server.url(), budget=200, ledger=tmp_path / "ledger")
    with pytest.raises(Unavailable):  # a new process has no new budget
        again.scores(x)
    assert server.served <= 200


def test_a_search_for_the_smallest_change_keeps_what_it_showed_last(server):
    x, y = torch.full((3, 1, 4, 4), 0.4), torch.zeros(3, dtype=torch.int64)
    target = http(server.url(), budget=300, batch=64)
    found = uf.run("hop_skip_jump()", target, x, y, uf.l2())
    assert found.interrupted and not found.success.any()  # nothing could be asked again
    assert (scores(found.best.double().numpy()).argmax(1) == 1).all() and torch.equal(found.x_adv, x)
    whole = uf.run("hop_skip_jump(queries=600)", http(server.url(), batch=64), x, y, uf.l2())
    assert whole.success.all() and float(whole.distance.max()) < 1.3 * 0.4  # sqrt(16) times 0.1


def test_an_evaluation_ends_with_the_budget_in_a_sentence(server):
    x, y = torch.full((12, 1, 4, 4), 0.3), torch.zeros(12, dtype=torch.int64)
    x[:4] = 0.48
    target = http(server.url(), budget=1500, batch=64)
    result = uf.evaluate(target, x, y, "linf(0.05)", suite="quick")
    assert server.served == target.module.counts["spent"] <= 1500
    assert result.count(uf.Status.BROKEN) == 4 and result.count(uf.Status.NOT_RUN) == 8
    assert result.status == "suspect" and any("budget of 1,500 queries" in note for note in result.notes)


def test_looking_at_the_targets_memory_does_not_give_queries_back(server):
    target = http(server.url(), budget=20)
    memory = Snapshot(target.module)
    target.scores(X)
    memory.restore()
    assert target.module.counts["spent"] == 7
    target.scores(X)
    memory.restore()
    with pytest.raises(Unavailable):
        target.scores(X)
    assert server.served == 14


def test_the_ledger_belongs_to_one_endpoint_and_one_user(server, tmp_path):
    target = http(server.url(), ledger=tmp_path / "ledger")
    with pytest.raises(InputError) as error:
        http(server.url(), ledger=tmp_path / "ledger")
    assert "uses the ledger" in said(error)
    target.module.close()
    with pytest.raises(InputError) as error:
        http(server.url("/other"), ledger=tmp_path / "ledger")
    assert "another endpoint" in said(error)
    with pytest.raises(InputError) as error:
        http(server.url(), ledger=tmp_path / "no" / "ledger")
    assert "cannot be opened" in said(error)


def test_a_torn_end_is_cut_and_a_damaged_middle_refused(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger(path, 100, "a")
    for i in range(5):
        ledger.reserve(3, f"r{i}")
    ledger.close_entry(3, "r0", "released")
    ledger.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with_whole_lines = whole[:cut].count(b"\n")
        again = Ledger(path, 100, "a")
        reserved = 3 * min(max(with_whole_lines - 1, 0), 5) - 3 * (with_whole_lines == 7)
        assert again.spent == reserved
        again.reserve(1, "more")
        again.close()
        once_more = Ledger(path, 100, "a")
        assert once_more.spent == reserved + 1
        once_more.close()
    for at in range(len(lines) - 1):
        bent = bytearray(lines[at])
        bent[12] ^= 1
        path.write_bytes(b"".join([*lines[:at], bytes(bent), *lines[at + 1 :]]))
        with pytest.raises(InputError) as error:
            Ledger(path, 100, "a")
        assert f"Line {at + 1} of the ledger" in said(error)


def test_nothing_is_sent_when_the_disk_is_full(server, tmp_path, monkeypatch):
    target = http(server.url(), ledger=tmp_path / "ledger")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError) as error:
        target.scores(X)
    assert "nothing was sent" in said(error) and server.seen == 0


def test_the_disk_has_the_line_before_the_request_leaves(server, tmp_path, monkeypatch):
    order = []
    sync, answer = os.fsync, Server.answer
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), order.append("disk"))[0])
    monkeypatch.setattr(Server, "answer", lambda *a: (order.append("sent"), answer(*a))[1])
    target = http(server.url(), ledger=tmp_path / "ledger", batch=3)
    order.clear()
    target.scores(X)
    assert order == ["disk", "sent"] * 3


KILLER = """
import os, random, signal, sys, time, warnings

import torch
from unfooled.errors import Unavailable
from unfooled.targets import http

url, ledger, budget, kills, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
luck = random.Random(seed)

def ask():
    real = time.sleep
    time.sleep = lambda seconds: real(min(seconds, 0.005))
    try:
        target = http(url, ledger=ledger, budget=budget, batch=4, timeout=5, retries=3)
        while True:
            target.scores(torch.rand(random.randint(1, 9), 1, 3, 3))
            os.write(told, b".")
    except Unavailable as end:
        os._exit(7 if "budget" in str(end) else 8)
    finally:
        os._exit(9)

done = 0
while True:
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        ask()
    os.close(told)
    if done < kills:
        if done % 2:  # every other one is killed at its work, the rest mostly as they begin
            os.read(heard, 1)
        time.sleep(luck.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(heard)
    done += code == -signal.SIGKILL  # one that gave up before was not killed
    target = http(url, ledger=ledger, budget=budget)
    spent = target.module.counts["spent"]
    target.module.close()
    print(code, spent, flush=True)
    sys.stdin.readline()
    if code == 7:
        break
"""


def killed(server: Server, folder: Path, budget: int, kills: int) -> tuple[int, int]:
    """Kill processes that ask again and again, at random moments, then let one spend what is left of the budget.

    Returns the kills, which are fewer where the budget was spent before them, and the rows that were served.
    """
    luck, done = random.Random(0), 0
    server.pause = 0.002
    (folder / "killer.py").write_text(KILLER)
    words = [sys.executable, folder / "killer.py", server.url(), folder / "ledger", budget, kills, 0]
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, words)), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdin is not None and process.stderr is not None
        for line in process.stdout:
            code, spent = map(int, line.split())
            done += code == -9
            assert server.served <= spent <= budget, "a query left that the ledger does not know"
            assert code in (-9, 7, 8)
            server.plan.extend(luck.choices(["well", "500", "429 0", "cut", "short", "text"], [6, 1, 1, 1, 1, 1], k=9))
            process.stdin.write("\n")
            process.stdin.flush()
        assert not process.stderr.read()
        assert process.wait() == 0
    return done, server.served


def test_kill_9_never_exceeds_the_budget(server, tmp_path):
    done, served = killed(server, tmp_path, 2_000, 12)  # at 4 rows in 2 ms twelve kills leave some
    assert done == 12 and 0 < served <= 2_000


@pytest.mark.slow
def test_kill_9_many_times(server, tmp_path):
    done, served = killed(server, tmp_path, 16_000, 100)
    assert done == 100 and 0 < served <= 16_000


# --- the key ----------------------------------------------------------------------------------------------------------


def everything_under(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key"])
def test_the_key_is_sent_and_shown_nowhere(tmp_path, monkeypatch, caplog, capsys, header):
    monkeypatch.setenv("MY_KEY", SECRET)
    (tmp_path / "key").write_text(SECRET + "\n")
    caplog.set_level(logging.DEBUG)
    shown = []
    with serving() as server:
        for source in ({"key_env": "MY_KEY"}, {"key_file": tmp_path / "key"}):
            target = http(server.url(), header=header, prefix="", ledger=tmp_path / "out-ledger", retries=1, **source)
            target.scores(X)
            assert all(h[header] == SECRET for h in server.headers)
            shown += [repr(target), repr(target.module), str(vars(target)), repr(target.module.wire)]
            shown += [target.name, target.fingerprint(), repr(target.module.wire._key), str(target.module.counts)]
            for how in ("401", "422", "500", "text", "cut", "404", "302"):
                server.plan.clear()
                server.plan.extend([how] * 2)
                try:
                    target.scores(X)
                except Exception as error:
                    shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
                    seen = error
                    while seen is not None:  # nothing on the way holds the request
                        assert not hasattr(seen, "request")
                        seen = seen.__context__
            server.plan.clear()
            result = uf.evaluate(target, X, torch.ones(7, dtype=torch.int64), "linf(0.1)", suite="quick", limit=4)
            uf.report.write(result, tmp_path / f"out-{next(iter(source))}")
            target.module.close()
    shown += [caplog.text, *capsys.readouterr()]
    files = b"".join(everything_under(p) for p in tmp_path.glob("out-*"))
    files += (tmp_path / "out-ledger").read_bytes()
    assert len(shown) > 30 and len(files) > 10_000
    assert SECRET not in "\n".join(shown) and SECRET.encode() not in files


def test_bodies_that_repeat_the_key_are_told_without_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving() as server:
        server.plan.append("401")
        with pytest.raises(Unavailable) as error:
            http(server.url(), key_env="MY_KEY").scores(X)
    assert "no, Bearer ***!" in said(error)


def test_unusable_keys_are_refused_without_showing_them(server, tmp_path, monkeypatch):
    (tmp_path / "empty").write_text(" \n")
    for value in (f"{SECRET}\nX-Evil: 1", f"{SECRET}\x00", f"{SECRET}é"):
        monkeypatch.setenv("MY_KEY", value.replace("\x00", "\x01"))
        with pytest.raises(InputError) as error:
            http(server.url(), key_env="MY_KEY")
        assert SECRET not in said(error) and "MY_KEY" in said(error)
    monkeypatch.delenv("MY_KEY")
    for wrong, word in (
        ({"key_env": "MY_KEY"}, "no key in the variable MY_KEY"),
        ({"key_file": tmp_path / "none"}, "cannot be read"),
        ({"key_file": tmp_path / "empty"}, "no key in the file"),
        ({"key_file": tmp_path / "empty", "key_env": "A"}, "not both"),
        ({"header": "X: 1\r\nEvil"}, "no name"),
    ):
        with pytest.raises(InputError) as error:
            http(server.url(), **wrong)
        assert word in said(error)


def test_proxies_and_netrc_of_the_environment_are_not_used(server, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    http(server.url()).scores(X)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.com/predict", "use https"),
        ("ftp://example.com/predict", "must begin with https"),
        (f"https://me:{SECRET}@example.com/predict", "holds a password"),
        (f"https://example.com/predict?api_key={SECRET}", "seems to hold a key"),
        (f"https://example.com/predict?v=2&Access-Token={SECRET}", "seems to hold a key"),
        ("https://", "must begin"),
        ("https://[::1", "no URL"),
    ],
)
def test_addresses_are_checked(url, word):
    with pytest.raises(InputError) as error:
        http(url)
    assert word in said(error) and SECRET not in said(error)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"retries": -1}, {"timeout": 0}, {"rate": 0}, {"budget": 0}])
def test_settings_are_checked(server, wrong):
    with pytest.raises(InputError) as error:
        http(server.url(), **wrong)
    assert next(iter(wrong)) in said(error)
    with pytest.raises(InputError):
        http(server.url(), labels=True)


def test_without_httpx2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtra) as error:
        http("https://example.com/predict")
    assert "unfooled[http]" in said(error)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_takes_an_address(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("UNFOOLED_HTTP_KEY", SECRET)
    x = np.full((6, 4, 4), 0.45, np.float32)
    x[3:] = 0.9
    np.savez(tmp_path / "data.npz", images=x, labels=np.array([0, 0, 0, 1, 1, 1]))
    with serving(SECRET) as server:
        words = ["evaluate", server.url(), str(tmp_path / "data.npz"), "--threat", "linf(0.1)", "--no-curve"]
        code = _app.call([*words, "--queries", "60", "--out", str(tmp_path / "out")])
        assert code == 3 and server.served > 0
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]["broken"] == 3
        assert _app.call(["verify", str(tmp_path / "out")]) == 0
        monkeypatch.setenv("UNFOOLED_HTTP_KEY", "another")
        assert _app.call([*words, "--out", str(tmp_path / "none")]) == 2
    said = "".join(capfd.readouterr())
    assert "refuses the key" in said
    assert SECRET not in said and SECRET.encode() not in everything_under(tmp_path / "out")


def test_a_file_of_python_may_make_the_endpoint(tmp_path, server):
    code = "from unfooled.targets import http\n\ndef make():\n    return http({!r}, budget=50, classes=['a', 'b'])\n"
    (tmp_path / "mine.py").write_text(code.format(server.url()))
    target = resolve(f"{tmp_path / 'mine.py'}:make")
    assert target.classes == ["a", "b"] and target.access is uf.Access.SCORES
    assert target.scores(X).shape == (7, 2) and target.module.counts["spent"] == 7


def test_a_run_whose_budget_was_spent_goes_on_with_a_larger_one(tmp_path, monkeypatch, capfd):
    code = """
import os
from unfooled.targets import http

def make():
    return http(os.environ["MY_URL"], budget=int(os.environ["MY_BUDGET"]), ledger=os.environ["MY_LEDGER"], batch=64)
"""
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setenv("MY_LEDGER", str(tmp_path / "ledger"))
    x = np.full((12, 3, 3), 0.3, np.float32)
    x[::3], x[1::3] = 0.47, 0.7
    np.savez(tmp_path / "data.npz", images=x, labels=(x[:, 0, 0] > 0.5).astype(np.int64))
    words = ["evaluate", f"{tmp_path / 'mine.py'}:make", str(tmp_path / "data.npz"), "--threat", "linf(0.05)"]
    words += ["--no-curve", "--queries", "40", "--batch-size", "1", "--out", str(tmp_path / "out")]
    with serving() as server:
        monkeypatch.setenv("MY_URL", server.url())
        monkeypatch.setenv("MY_BUDGET", "550")
        assert _app.call(words) == 130
        first = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
        said = "".join(capfd.readouterr())
        assert "budget of 550 queries is spent" in said and "--resume" in said
        assert first["broken"] > 0 and first["not_run"] > 0 and server.served <= 550
        gc.collect()  # the first target holds the ledger as long as it lives
        monkeypatch.setenv("MY_BUDGET", "5000")
        before = server.served
        assert _app.call(["evaluate", "--resume", str(tmp_path / "out")]) == 3
        counts = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
        assert counts["broken"] == 4 and counts["survived"] == 8 and counts["not_run"] == 0
        assert server.served - before < 4 * before  # what was done was not asked again
