"""The gauntlet: every broken target under `unfooled.evaluate`, its number against the honest interval.

    python -m benchmarks.gauntlet [--only NAME ...] [--suite standard] [--n 50] [--jobs 2]
    python -m benchmarks.gauntlet --answers      # the honest answers themselves, into tests/gauntlet/answers.json

A row is right when the number lies in the honest interval up to one image (or the evaluation declined to give one where
that is allowed) and the findings that the case expects are there. A trusted number outside is a LIE.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unfooled as uf
from benchmarks import results
from tests.gauntlet import broken
from tests.gauntlet.broken import CASES, EPS, NEAR, Answers, Case, N
from unfooled.errors import UnfooledError

CLOCK = 20.0
"""Seconds of processor time that one case may take (on one thread: wall-clock seconds of a machine at rest)."""

Scores = Callable[[Tensor], Tensor]


# ---- the run


@dataclass
class Row:
    """What one case gave; `number` and `ids` say whether each was right."""

    name: str
    family: str
    low: float
    high: float
    reported: float | None
    verdict: str
    findings: list[str]
    expects: list[str]
    seconds: float
    number: bool
    ids: bool
    reasons: list[str]

    @property
    def right(self) -> bool:
        """Whether number, findings and clock were right."""
        return self.number and self.ids and self.seconds <= CLOCK

    @property
    def lie(self) -> bool:
        """Whether a wrong number was trusted."""
        return self.verdict == "trusted" and not self.number

    @property
    def line(self) -> str:
        """The table's line."""
        honest = f"{self.low:.0%}" if self.low == self.high else f"{self.low:.0%} to {self.high:.0%}"
        found = "-" if self.reported is None else f"{self.reported:.0%}"
        word = "right" if self.right else "LIE" if self.lie else "wrong" if not self.number else "right number"
        if self.number and self.ids and not self.right:
            word = "late"
        return (
            f"| {self.name} | {self.family} | {honest} | {found} | {self.verdict} | {' '.join(self.findings) or '-'} "
            f"| {self.seconds:.1f} | {word} |"
        )


HEADER = "| target | family | honest | reported | verdict | findings | cpu seconds | right? |\n" + "|---" * 8 + "|"


class Late(BaseException):
    """The clock rang; no Exception, so that nothing on the way swallows it."""


@contextlib.contextmanager
def clock(seconds: float) -> Iterator[None]:
    """Raise Late in the main thread when the block takes more processor time."""

    def ring(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def number_of(found: uf.Evaluation) -> float:
    """Return the robust accuracy as the evaluation reports it (for random targets the mean survival)."""
    return float(found.robust_accuracy)


def judge(case: Case, n: int, found: uf.Evaluation | None, error: str, seconds: float) -> Row:
    """Return the row for an evaluation, or for the refusal or crash that came instead."""
    low, high = case.honest(Answers(n))
    if found is None:
        refused = error.startswith("refused")
        good = refused and bool(case.may_withhold)
        return Row(case.name, case.family, low, high, None, error, [], sorted(case.expects), seconds, good, good, [])
    reported, status = number_of(found), str(found.status)
    ids = sorted({f.id for f in found.findings})
    slack = 1 / n + 1e-9
    inside = low - slack <= reported <= high + slack
    number = bool(case.may_withhold) if status == "withheld" else inside
    present = all(set(wanted.split("|")) & set(ids) for wanted in case.expects)
    return Row(
        case.name, case.family, low, high, None if status == "withheld" else reported, status, ids,
        sorted(case.expects), seconds, number, present, list(found.reasons),
    )  # fmt: skip


def run(case: Case, *, n: int = N, suite: str = "standard", folder: str | None = None, limit: float = CLOCK) -> Row:
    """Evaluate one case and judge it; whatever is raised becomes a row."""
    mode, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    began = time.process_time()
    found, error = None, ""
    try:
        with clock(limit), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            x, y = case.inputs(n, folder)
            found = uf.evaluate(case.make(), x, y, case.ball, suite=suite)
    except Late:
        error = f"crash: over {limit:g} s"
    except UnfooledError as e:
        error = ("refused: " if isinstance(e, uf.InputError) else "crash: ") + " ".join(str(e).split())[:160]
    except Exception as e:
        error = f"crash: {type(e).__name__}: {' '.join(str(e).split())[:120]}"
    finally:
        torch.set_grad_enabled(mode)
        torch.set_default_dtype(dtype)
    return judge(case, n, found, error, time.process_time() - began)


def by_name(name: str, **settings: Any) -> Row:
    """Run a case by its name, in another process."""
    return run(CASES[name], **settings)


def summary(rows: list[Row]) -> dict[str, int]:
    """Return the counts that the closing line gives."""
    return {
        "cases": len(rows),
        "right": sum(r.right for r in rows),
        "right number": sum(r.number for r in rows),
        "lies": sum(r.lie for r in rows),
        "too high": sum(r.reported is not None and r.reported > r.high and not r.number for r in rows),
        "too low": sum(r.reported is not None and r.reported < r.low and not r.number for r in rows),
        "crashes": sum(r.verdict.startswith("crash") for r in rows),
        "late": sum(r.seconds > CLOCK for r in rows),
    }


# ---- the honest answers


def worst(
    score: Scores, guide: Scores, x: Tensor, y: Tensor, eps: float, *, snap: Scores | None = None,
    steps: int = 60, restarts: int = 4, seed: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Return the smallest margin [n] and gap of probabilities [n] that `score` showed in the ball, and last iterates.

    Signed gradient steps along `guide`, towards every other class, with falling step size and several starts; every
    iterate is scored. Margins of rows that are not finite do not count. `snap` changes an iterate before it is scored.
    """
    margin, gap, ends = torch.full((len(x),), torch.inf), torch.full((len(x),), torch.inf), []
    rows = torch.arange(len(x))
    luck = torch.Generator().manual_seed(seed)

    def see(v: Tensor) -> None:
        with torch.no_grad():
            z = score(v if snap is None else snap(v)).float()
        for kept, s in ((margin, z), (gap, F.softmax(z, 1))):
            own = s[rows, y]
            m = own - s.scatter(1, y[:, None], -torch.inf).amax(1)
            kept.copy_(torch.where(m.isfinite(), torch.minimum(kept, m), kept))

    see(x)
    with torch.no_grad():
        order = guide(x).nan_to_num().scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    for rank in range(order.shape[1] - 1):
        for restart in range(restarts):
            aim = order[:, rank]
            start = x if restart == 0 else x + eps * (2 * torch.rand(x.shape, generator=luck) - 1)
            v = start.clamp(0, 1)
            for i in range(steps):
                u = v.clone().requires_grad_(True)
                with torch.enable_grad():
                    z = guide(u)
                    climb = z[rows, aim] - z[rows, y] if restart % 2 == 0 else F.log_softmax(z, 1)[rows, aim]
                    (g,) = torch.autograd.grad(climb.sum(), u)
                size = 2 * eps * (1 - i / steps)
                v = torch.minimum(torch.maximum(v + size * g.nan_to_num().sign(), x - eps), x + eps).clamp(0, 1)
                see(v)
            ends.append(v)
    return margin, gap, ends


def network_answers(data: str, folder: str | None) -> dict[str, Any]:
    """Return the worst margins of an undefended network: our own steps, and the suite autoattack where it is better."""
    module, (x, y) = broken.net(data), broken.images(data, folder if data == "mnist" else None)
    out = {}
    for eps in NEAR[data]:
        margin, gap, _ = worst(module, module, x, y, eps)
        found = uf.evaluate(module, x, y, f"linf({eps})", suite="autoattack")
        beaten = ~found.robust & (margin > 0)
        with torch.no_grad():
            p = F.softmax(module(found.x_adv), 1)
        own = p[torch.arange(len(y)), y]
        theirs = own - p.scatter(1, y[:, None], -1).amax(1)
        margin = torch.where(beaten, -1e-6, margin)
        gap = torch.where(~found.robust, torch.minimum(gap, theirs), gap)
        out[f"{eps:g}"] = {
            "robust": int((margin > 0).sum()), "only_autoattack": int(beaten.sum()),
            "margin": [round(float(m), 6) for m in margin], "gap": [round(float(m), 6) for m in gap],
        }  # fmt: skip
        print(f"{data} {eps:g}: {out[f'{eps:g}']['robust']} of {len(x)}, {int(beaten.sum())} by autoattack alone")
    return out


def _through(g: Scores, base: nn.Module) -> Scores:
    """Return the network after g, with g's gradient taken for the identity's (BPDA)."""
    return lambda v: base(v + (g(v) - v).detach())


def _to_grid(x: Tensor) -> Scores:
    """Return the rounding to 8-bit values, towards x, so that the ball is kept."""
    return lambda v: torch.where(v > x, (v * 255 + 1e-4).floor(), (v * 255 - 1e-4).ceil()) / 255


def secrets(x: Tensor, y: Tensor) -> dict[str, tuple[Scores, Scores, Scores | None]]:
    """Return per case (what scores, what guides, how candidates are changed), with the case's secret known."""
    base, mnist = broken.net(), broken.net("mnist")
    made = {name: CASES[name].make() for name in ("jpeg-like", "purifies", "purifies-longer", "k-winners")}

    def alone(v: Tensor) -> Tensor:
        spread = v.std((1, 2, 3), keepdim=True).clamp_min(1e-6)
        return base((v - v.mean((1, 2, 3), keepdim=True)) / spread * 0.376 + 0.305)

    def half(v: Tensor) -> Tensor:
        return base(0.5 * v + 0.15)

    def accepted(v: Tensor) -> Tensor:
        """The right class keeps a lead of 1 wherever the target rejects."""
        z = base(v)
        refused = F.softmax(z, 1).amax(1, keepdim=True) < 0.9
        keep = F.one_hot(y, 10).to(z) * (z.amax(1, keepdim=True) + 1 - z)
        return torch.where(refused, z + keep, z)

    def bright(v: Tensor) -> Tensor:
        return base(v) + torch.where(v.flatten(1).mean(1) > 0.36, torch.nan, 0.0)[:, None]

    return {
        "round-16-levels": (lambda v: base(broken.levels(16)(v)), _through(broken.levels(16), base), None),
        "jpeg-like": (made["jpeg-like"], _through(broken.jpeg, base), None),
        "purifies": (made["purifies"], made["purifies"], None),
        "purifies-longer": (made["purifies-longer"], made["purifies-longer"], None),
        "k-winners": (made["k-winners"], made["k-winners"], None),
        "nan-off-grid": (mnist, mnist, _to_grid(x)),
        "nan-when-bright": (bright, base, None),
        "batch-mean": (half, half, None),
        "batch-statistics": (alone, alone, None),
        "rejects-below-90": (accepted, base, None),
    }


def secret_answers(name: str, folder: str | None) -> dict[str, Any]:
    """Return which images an attack with the case's secret leaves standing, with the network's examples added."""
    data = CASES[name].data
    x, y = broken.images(data, folder if data == "mnist" else None)
    score, guide, snap = secrets(x, y)[name]
    eps, base = float(CASES[name].ball[5:-1]), broken.net(data)  # all are "linf(...)"
    margin = worst(score, guide, x, y, eps, snap=snap, restarts=6)[0]
    if guide is not base:  # examples of the network inside
        margin = torch.minimum(margin, worst(score, base, x, y, eps, snap=snap, seed=1)[0])
    if name == "k-winners":  # its landscape jumps: gradients averaged over neighbours

        def smooth(v: Tensor) -> Tensor:
            return torch.stack([guide(v + 0.02 * torch.randn_like(v)) for _ in range(4)]).mean(0)

        margin = torch.minimum(margin, worst(score, smooth, x, y, eps, steps=40, restarts=3, seed=2)[0])
    if name in ("round-16-levels", "jpeg-like"):  # many random corners near what was found would add little: try some
        luck = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _ in range(2000):
                v = (x + eps * (2 * torch.randint(0, 2, x.shape, generator=luck) - 1)).clamp(0, 1)
                z = score(v)
                own = z[torch.arange(len(y)), y]
                margin = torch.minimum(margin, own - z.scatter(1, y[:, None], -torch.inf).amax(1))
    with torch.no_grad():
        start = CASES[name].make()(x)
    if name == "rejects-below-90":  # an image that is rejected to begin with counts as rejected, not as robust
        margin = torch.where(start.argmax(1) == y, margin, -1.0)
    return {"survival": [int(m > 0) for m in margin], "how": "attack with the secret known"}


def random_answers(name: str, x: Tensor, y: Tensor, draws: int = 400) -> dict[str, Any]:
    """Return per image the smallest survival probability found: gradients over draws, candidates re-drawn."""
    torch.manual_seed(0)
    target, base = CASES[name].make(), broken.net()

    def expected(v: Tensor) -> Tensor:
        return torch.stack([target(v) for _ in range(4)]).mean(0)

    ends = worst(target, expected, x, y, EPS["digits"], steps=40, restarts=2)[2]
    ends += worst(target, base, x, y, EPS["digits"], steps=60, restarts=2)[2]

    def survival(v: Tensor, times: int) -> Tensor:
        with torch.no_grad():
            return torch.stack([(target(v).argmax(1) == y).float() for _ in range(times)]).mean(0)

    rough = torch.stack([survival(v, 40) for v in [x, *ends]])  # [candidates, n]
    chosen = torch.stack([x, *ends])[rough.argmin(0), torch.arange(len(y))]
    fresh = survival(chosen, draws)
    return {"survival": [round(float(p), 4) for p in fresh], "how": f"EOT, the worst candidate over {draws} new draws"}


def answers(only: list[str], folder: str | None) -> None:
    """Make the honest answers and write them to tests/gauntlet/answers.json; `only` names networks or cases."""
    x, y = broken.images("digits")
    stored = json.loads(broken.ANSWERS.read_text(encoding="utf-8")) if broken.ANSWERS.is_file() else {}
    stored = {"networks": {}, "cases": {}} | stored
    stored["made_by"] = "python -m benchmarks.gauntlet --answers"
    stored["how"] = {
        "networks": "per image the smallest margin (and gap of probabilities) over signed-gradient steps towards every "
        "other class with 4 starts, and the suite autoattack; robust: margin > 0",
        "cases": "per image the survival (0, 1, or the probability for random targets) under an attack that knows the "
        "target's secret (the network's gradient straight through the defence, examples of the network, EOT)",
    }
    for data in EPS:
        if not only or data in only:
            stored["networks"][data] = network_answers(data, folder)
    randoms = ("input-noise", "logit-noise", "dropout-at-test-time", "random-shift")
    for name in [*secrets(x, y), *randoms]:
        if not only or name in only:
            made = random_answers(name, x, y) if name in randoms else secret_answers(name, folder)
            stored["cases"][name] = made
            share = sum(stored["cases"][name]["survival"]) / len(y)
            print(f"{name}: {share:.1%}", flush=True)
        text = json.dumps(stored, indent=None, separators=(", ", ": "))
        broken.ANSWERS.write_text(text.replace('}, "', '},\n"') + "\n", encoding="utf-8")


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases by name or family")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--clock", type=float, default=CLOCK, help="seconds before a case is cut off")
    parser.add_argument("--data-dir", default=str(Path(__file__).parents[2] / "shared" / "data"), help="of MNIST")
    parser.add_argument("--answers", action="store_true", help="make the honest answers")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.answers:
        answers(given.only, given.data_dir)
        return
    chosen = [c for c in CASES.values() if not given.only or c.name in given.only or c.family in given.only]
    print(HEADER, flush=True)
    rows = []
    context = multiprocessing.get_context("spawn")
    job = functools.partial(by_name, n=given.n, suite=given.suite, folder=given.data_dir, limit=given.clock)
    with context.Pool(given.jobs, torch.set_num_threads, (given.threads,)) as pool:
        for row in pool.imap(job, [c.name for c in chosen]):
            rows.append(row)
            print(row.line, flush=True)
    print(", ".join(f"{k} {v}" for k, v in summary(rows).items()))
    settings = {"suite": given.suite, "n": given.n, "threads": given.threads}
    stored = results.read("gauntlet").get("gauntlet", {})
    kept = stored.get("rows", []) if all(stored.get(k) == v for k, v in settings.items()) else []
    fresh = {r["name"]: r for r in kept} | {r.name: asdict(r) | {"right": r.right} for r in rows}
    ordered = [fresh[name] for name in CASES if name in fresh]  # rows of cases that were not run now stay
    fields = [f.name for f in dataclasses.fields(Row)]
    counts = summary([Row(**{k: row[k] for k in fields}) for row in ordered])
    results.write("gauntlet", "gauntlet", settings | {"summary": counts, "rows": ordered})


if __name__ == "__main__":
    main()
