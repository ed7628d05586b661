"""Write docs/claims.md, and the numbers of docs/why.md, from tests and results: `python docs/make_claims.py`.

A row is a claim with what decides it. Where a measurement decides, a rule reads the committed results and the row
prints the number; where a test decides, the test asserts the claim. tests/test_claims.py holds the pages to this.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results, tables  # noqa: E402
from unfooled.stats import wilson  # noqa: E402

PAGE = ROOT / "docs" / "claims.md"
WHY = ROOT / "docs" / "why.md"

REPRODUCED, CONTRADICTED, MIXED = "reproduced", "contradicted", "mixed"
OPEN, UNDECIDABLE = "open", "undecidable"
RESULTS = (REPRODUCED, CONTRADICTED, MIXED, OPEN, UNDECIDABLE)

Said = tuple[str, str]
"""A result and the sentence that gives its reason."""


@dataclass(frozen=True)
class Part:
    """One piece of what decides a claim: `judge` gets one entry per key and returns a result with its sentence."""

    judge: Callable[..., Said]
    keys: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()

    def decide(self) -> Said:
        """Return the result; open as long as an entry is missing."""
        if missing := [key for key in self.keys if entry(key) is None]:
            return OPEN, f"not measured yet: {', '.join(f'`{key}`' for key in missing)}"
        return self.judge(*(entry(key) for key in self.keys))


@dataclass(frozen=True)
class Row:
    """One claim, in our words, and the parts that decide it together."""

    name: str
    claim: str
    parts: tuple[Part, ...] = field(repr=False)

    def decide(self) -> Said:
        """Return the result of all parts: what is missing comes first, parts that differ make it mixed."""
        said = [part.decide() for part in self.parts]
        found = {result for result, _ in said}
        result = next((r for r in (OPEN, UNDECIDABLE) if r in found), found.pop() if len(found) == 1 else MIXED)
        return result, "; ".join(words for _, words in said if words)


def entry(key: str) -> dict[str, Any] | None:
    """Return the entry `table/case` of benchmarks/results, None where there is none."""
    table, case = key.split("/", 1)
    return results.read(table).get(case)


# ---- kinds of parts


def tested(*nodes: str, says: str = "") -> Part:
    """Return a part that tests decide: they assert the claim."""
    return Part(lambda: (REPRODUCED, says), proofs=nodes)


def refuted(*nodes: str, says: str) -> Part:
    """Return a part that tests decide: they assert the opposite of the claim."""
    return Part(lambda: (CONTRADICTED, says), proofs=nodes)


def measured(*keys: str, by: Callable[..., Said]) -> Part:
    """Return a part that entries of the results decide."""
    return Part(by, keys=keys)


def undecidable(why: str, *proofs: str) -> Part:
    """Return a part that no program of ours can decide."""
    return Part(lambda: (UNDECIDABLE, why), proofs=proofs)


def missing(what: str) -> Part:
    """Return a part whose evidence does not exist yet."""
    return Part(lambda: (OPEN, f"missing: {what}"))


def verdict(holds: bool, words: str) -> Said:
    """Return reproduced or contradicted with the sentence."""
    return (REPRODUCED if holds else CONTRADICTED), words


def all_some_none(holds: list[bool], words: str) -> Said:
    """Return reproduced where it holds everywhere, contradicted where nowhere, else mixed."""
    return (REPRODUCED if all(holds) else MIXED if any(holds) else CONTRADICTED), words


def share(value: float) -> str:
    """Return a share as people read it: 41.3%."""
    return f"{value:.1%}"


def sure(value: float) -> str:
    """Return a confidence as people read it, which is never whole."""
    return ">99.9999%" if value > 0.999999 else f"{value:.4%}"


def ours(found: dict[str, Any]) -> str:
    """Return our value of an entry with its interval."""
    return tables.valued(found, "ours")


def beside(found: dict[str, Any]) -> str:
    """Return our value and the published one."""
    return f"{ours(found)}, published {tables.valued(found, 'published')}" if found.get("published") else ours(found)


# ---- rules


def small_change(standard: dict[str, Any]) -> Said:
    n, clean, robust = standard["n"], standard["clean"], standard["unfooled"]["robust"]
    words = (
        f"{standard['title']} reads {share(clean / n)} of {n} {standard['data']} images right, and at most "
        f"{share(robust / n)} after changes within {standard['threat']}"
    )
    return verdict(robust < clean / 2, words)


def tiny_step(found: dict[str, Any]) -> Said:
    sure, sure_before = found["confidence_on_errors"], found["confidence_before"]
    words = (
        f"{found['what']}: {ours(found)}, mean confidence in the wrong class {share(sure)}, before {share(sure_before)}"
    )
    return verdict(found["ours"] > 0.5 and sure > 0.9, words)


def noise_control(found: dict[str, Any]) -> Said:
    words = f"{found['what']}: {ours(found)}; random signs of the same size: {share(found['noise'])}"
    return verdict(found["interval"][0] > found["noise"], words)


def together(found: dict[str, Any]) -> Said:
    words = f"{found['what']}: {ours(found)}; by one pixel alone moved as far, whichever: {share(found['alone'])}"
    return verdict(found["interval"][0] > found["alone_interval"][1], words)


def labels_near(found: dict[str, Any]) -> Said:
    words = (
        f"{found['what']}: {ours(found)}; median smallest change {found['median_by_labels']:.2f} by labels and "
        f"{found['median_by_gradients']:.2f} by gradients, labels nearer on {found['nearer_by_labels']} of {found['n']}"
    )
    return verdict(found["interval"][0] > 0.5, words)


def black_box(*found: dict[str, Any]) -> Said:
    told = [
        f"`{e['attack']}` ({e['access']} alone) fools {e['success'][-1]} of {e['n']} within {NORM[e['norm']]} "
        f"{e['eps']} after {e['grid'][-1]:,} questions an image"
        for e in found
    ]
    return verdict(all(e["success"][-1] > 0 for e in found), "; ".join(told))


NORM = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}


def reversed_(rule: Callable[..., Said]) -> Callable[..., Said]:
    """Return the rule for a claim that says the opposite."""
    other = {REPRODUCED: CONTRADICTED, CONTRADICTED: REPRODUCED}

    def judge(*found: dict[str, Any]) -> Said:
        result, words = rule(*found)
        return other.get(result, result), words

    return judge


SIZES = tuple(f"capacity/width {width}, 1000 images, {way}" for way in ("pgd", "standard") for width in ("0.25", "2"))
MATRIX = "transfer/`composite_fgsm()` at Linf 0.2, last iterates"
TRANSFER = (
    MATRIX,
    *(f"claims/noise {name} 0.2" for name in ("mnist-cnn", "mnist-cnn-robust", "mnist_256x2", "mnist_fastadv")),
)


def pairs(matrix: dict[str, Any], *noises: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], bool]]:
    """Yield the pairs of different networks with their noise control, and whether more carries over than noise does."""
    names = list(dict.fromkeys(c["target"] for c in matrix["cells"]))[: len(noises)]
    noise = dict(zip(names, noises, strict=True))
    for cell in matrix["cells"]:
        if cell["source"] in noise and cell["target"] in noise and cell["source"] != cell["target"]:
            control = noise[cell["target"]]
            yield cell, control, cell["interval"][0] > control["interval"][1]


def carries_over(*found: dict[str, Any]) -> Said:
    all_pairs = list(pairs(*found))
    more = [cell for cell, _, above in all_pairs if above]
    told = ", ".join(f"{share(c['rate'])} (`{c['source']}` to `{c['target']}`)" for c in more)
    noise = ", ".join(
        f"`{name}` {share(control['ours'])}"
        for name, control in {cell["target"]: control for cell, control, _ in all_pairs}.items()
    )
    words = (
        f"in {len(more)} of {len(all_pairs)} pairs of MNIST networks more carries over at Linf 0.2 than random signs do"
    )
    words += f": {told or 'none'}; random signs: {noise}"
    return verdict(bool(more), words)


def same_class(*found: dict[str, Any]) -> Said:
    cells = [cell for cell, _, above in pairs(*found) if above and cell["fooled"] >= 10]
    often = [c for c in cells if c["same_interval"][0] > 1 / 9]
    told = ", ".join(f"{share(c['same_rate'])} (`{c['source']}` to `{c['target']}`)" for c in cells)
    words = f"the wrong class is the same in {told} of what carries over; by chance 11.1%"
    return (REPRODUCED if len(often) == len(cells) else MIXED if often else CONTRADICTED), words


def vote(whole: dict[str, Any], *single: dict[str, Any]) -> Said:
    alone = ", ".join(share(e["hits"] / e["n"]) for e in single)
    words = (
        f"the vote of three MNIST networks at Linf 0.2: {share(whole['hits'] / whole['n'])} fooled through its own "
        f"gradient, {alone} through one member's (`{whole['recipe']}`)"
    )
    return verdict(whole["interval"][0] < 0.5, words)


def jointly(*found: dict[str, Any]) -> Said:
    """Harder jointly than one at a time where the best single member leads further than any joint way."""
    told, harder = [], []
    half = len(found) // 2
    for some in (found[:half], found[half:]):
        single = [e for e in some if e["through"] in ("mnist-cnn", "mnist_256x2", "mnist_fastadv")]
        joint = [e for e in some if e not in single]
        best, most = (max(group, key=lambda e: e["hits"]) for group in (single, joint))
        harder.append(best["interval"][0] > most["interval"][1])
        alone, at_once = (", ".join(share(e["hits"] / e["n"]) for e in group) for group in (single, joint))
        told.append(
            f"`{best['recipe']}`: the vote is fooled on {alone} through one member alone (each of three), on {at_once} "
            "through all at once (its own gradient; mean of logits, of probabilities, of gradients); best against best"
        )
    result = REPRODUCED if all(harder) else MIXED if any(harder) else CONTRADICTED
    return result, "; ".join(told)


def votes(recipe: str) -> tuple[str, ...]:
    """Return the keys of the vote's rows: through its own gradient, then through each member."""
    members = ("the vote itself, white-box", "mnist-cnn", "mnist_256x2", "mnist_fastadv")
    return tuple(f"transfer/ensemble {recipe} {member}" for member in members)


def jointly_keys(recipe: str) -> tuple[str, ...]:
    """Return the keys of all ways to lead the vote astray."""
    ways = ("mean_logits", "mean_probabilities", "mean_gradients")
    return *votes(recipe), *(f"transfer/ensemble {recipe} all three, {way}" for way in ways)


def blurred(*found: dict[str, Any]) -> Said:
    told = [
        f"{e['what']}: {ours(e)}; by examples made without the blur {share(e['without'])}; clean accuracy "
        f"{share(e['clean_without'])} before, {share(e['clean'])} with it"
        for e in found
    ]
    helps = any(e["interval"][1] < 0.5 for e in found)
    return verdict(helps, "; ".join(told))


def panda_turned(found: dict[str, Any]) -> Said:
    words = (
        f"{found['what']}: giant panda {share(found['before'])}, then {found['after']:.4%}, at most "
        f"{found['grey_levels']:.0f} of 255 grey levels; random noise of that size fools it in "
        f"{found['noise_fooled']} of {found['noise_draws']} draws"
    )
    return verdict(found["ours"] == 1 and found["noise_fooled"] == 0 and found["grey_levels"] <= 2.01, words)


def panda_step(found: dict[str, Any]) -> Said:
    words = f"{found['what']}: {found['after_class']} {share(found['after'])} (before {share(found['before'])})"
    return verdict(found["ours"] == 1, words)


def training(plain: dict[str, Any], robust: dict[str, Any]) -> Said:
    words = (
        f"{plain['data']} within {plain['threat']}: at most {share(plain['unfooled']['robust'] / plain['n'])} right "
        f"plainly trained, {share(robust['unfooled']['robust'] / robust['n'])} trained adversarially"
    )
    return verdict(robust["unfooled"]["robust"] / robust["n"] > plain["unfooled"]["robust"] / plain["n"], words)


def cleaner(*found: dict[str, Any]) -> Said:
    """Adversarial training gains clean accuracy where an exact test on the images that differ says so."""
    gains = [e["p_value"] < 0.05 and e["gained"] > e["lost"] for e in found]
    told = [
        f"{e['what']} {share(e['ours'])}, plainly {share(e['plain'])} ({e['gained']} images gained, {e['lost']} lost, "
        f"p = {e['p_value']:.2g})"
        for e in found
    ]
    result = REPRODUCED if all(gains) else MIXED if any(gains) else CONTRADICTED
    return result, "; ".join(told)


def apart(low: dict[str, Any], high: dict[str, Any]) -> bool:
    """Return whether the second value lies above the first beyond both intervals."""
    return bool(low["interval"][1] < high["interval"][0])


def larger(*found: dict[str, Any]) -> Said:
    """Robust classification needs more than plain accuracy does: the small network does the one and not the other."""
    small, large, small_plain, large_plain = found
    told = [
        f"{e['parameters']:,} parameters: trained against PGD {ours(e)} robust and {e['clean']}% clean"
        for e in (small, large)
    ]
    told.append(f"plainly trained {small_plain['clean']}% and {large_plain['clean']}% clean")
    return verdict(apart(small, large) and small_plain["clean"] >= 90, f"digits, linf(0.15): {'; '.join(told)}")


def ironed_out(*found: dict[str, Any]) -> Said:
    """More of everything helps where the last is above the first; nothing is ironed out while clean stays far above."""
    first, last = found[0], found[-1]
    told = ", ".join(f"{share(e['ours'])} ({e['parameters']:,} parameters, {e['images']:,} images)" for e in found)
    words = f"digits, linf(0.15), robust after PGD training: {told}; clean accuracy of the largest {last['clean']}%"
    if not apart(first, last):
        return CONTRADICTED, words
    return (REPRODUCED if last["interval"][1] >= last["clean"] / 100 else MIXED), words


def refused(seen: dict[str, Any], joint: dict[str, Any]) -> Said:
    """It rejects what ignores it; attacks on both may not take more than chance from that."""
    by = ", ".join(f"{row['attack'].partition('(')[0]} {row['auroc']:.3f}" for row in seen["rows"])
    words = f"{joint['what']}: {ours(joint)}, {joint['note']}; AUROC against attacks that ignore it: {by}"
    ignoring = all(row["auroc"] > 0.9 for row in seen["rows"])
    stands = joint["interval"][1] >= float(joint["note"].partition("that ignore it ")[2].partition("%")[0]) / 100
    return (REPRODUCED if ignoring and stands else MIXED if ignoring else CONTRADICTED), words


def doubled(own: dict[str, Any], *light: dict[str, Any]) -> Said:
    """Double where a detector with a network of its own costs half as much again or more, in parameters and in time."""
    words = "; ".join(
        f"{e['what'].partition(':')[0]}: {e['parameters']:.2f} times the parameters, {e['seconds']:.2f} times the time"
        for e in (own, *light)
    )
    holds = own["parameters"] > 1.5 and own["seconds"] > 1.5
    cheaper = any(e["parameters"] < 1.5 and e["seconds"] < 1.5 for e in light)
    return (MIXED if holds and cheaper else REPRODUCED if holds else CONTRADICTED), words


def tuned(before: dict[str, Any], after: dict[str, Any], control: dict[str, Any]) -> Said:
    words = (
        f"`mnist-cnn`, {after['threat']}: a freshly learned change fools {ours(before)} before, {ours(after)} after "
        f"five rounds, {ours(control)} after as much plain training"
    )
    return verdict(apart(after, before) and apart(after, control), words)


def no_more(first: dict[str, Any], last: dict[str, Any]) -> Said:
    told = ", ".join(share(hits / last["n"]) for hits in last["fooled"])
    return verdict(not apart(last, first), f"`mnist-cnn`, {last['threat']}: {told} before and after each round")


def raised(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"CIFAR-10, {e['what']}: {ours(e)}" for e in found)
    return all_some_none([e["interval"][0] > 0 for e in found], told)


def hard_training(plain: dict[str, Any], *harder: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what'].rpartition(', ')[2]} {ours(e)}" for e in (plain, *harder))
    return all_some_none([apart(plain, e) for e in harder], f"digits, linf(0.15), suite `standard`: {told}")


def cleaner_maxout(plain: dict[str, Any], trained: dict[str, Any], gain: dict[str, Any]) -> Said:
    low, high = gain["interval"]
    words = f"{plain['what']}: {beside(plain)}; with it {beside(trained)}; the difference {ours(gain)}; {gain['note']}"
    return (REPRODUCED if low > 0 else CONTRADICTED if high < 0 else MIXED), words


def resists(plain: dict[str, Any], trained: dict[str, Any], many: dict[str, Any]) -> Said:
    words = f"{plain['what']}: {beside(plain)}; with it {beside(trained)}; {many['what']}: {ours(many)}"
    return verdict(trained["ours"] < plain["ours"] / 2, words)


def universal(*found: dict[str, Any]) -> Said:
    told = [
        f"one change of Linf {e['eps']} fools `{e['target']}` on {share(e['hits'] / e['n'])} of {e['n']} images"
        for e in found
    ]
    return verdict(all(e["interval"][0] > 0.5 for e in found), "; ".join(told))


def smallest(found: dict[str, Any]) -> Said:
    words = (
        f"`{found['attack']}` finds a change for {found['success']} of {found['n']} images of {found['case']}, median "
        f"{NORM[found['norm']]} {found['median']:.2f}"
    )
    return verdict(found["success"] == found["n"], words)


def upper(rate: float, n: int) -> float:
    """Return the upper end of the 95% interval of a share of n."""
    return wilson(round(rate * n), n)[1]


def above_noise(row: dict[str, Any]) -> bool:
    """Whether a row of a transfer table fools more than random changes of the same size do."""
    return bool(row["n"]) and row["fooled_low"] > upper(row["noise"], row["n"])


def of_family(found: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the rows of a family's entry for other targets, those named where any are."""
    others = [row for row in found["rows"] if row["target"] != row["source"] and row["n"]]
    return [row for row in others if not names or row["target"] in names]


def across_families(found: dict[str, Any]) -> Said:
    rows = of_family(found)
    told = ", ".join(f"{row['target']} {share(row['fooled'])} (random changes {share(row['noise'])})" for row in rows)
    carried = [above_noise(row) for row in rows]
    words = f"made on {rows[0]['source']} at L2 2: {told}"
    return all_some_none(carried, words)


def shared_errors(*found: dict[str, Any]) -> Said:
    """Others have other bugs where what fools one fools them no more than noise does, or into other classes."""
    rows = [row for e in found for row in of_family(e)]
    more = [above_noise(row) and row["fooled"] * row["n"] >= 10 for row in rows]
    alike = [above and row["same_low"] > 1 / 9 for above, row in zip(more, rows, strict=True)]
    words = (
        f"what fools one model family fools another on {share(sum(r['fooled'] for r in rows) / len(rows))} on average, "
        f"beyond noise in {sum(more)} of {len(rows)} pairs, in {sum(alike)} into the same wrong class more than "
        f"one time in nine"
    )
    return all_some_none([not same for same in alike], words)


def carried_to(name: str) -> tuple[str, str]:
    """Return the keys of the smallest changes shown to a network, and of random changes of their size."""
    return f"halves/smallest change: {name}", f"halves/random, same size: {name}"


SAME_HALF, OTHER_HALF = "123-456-10 on half 1", "100-100-10 on half 2"


def halves(*found: dict[str, Any]) -> Said:
    """Pairs of an entry of changes and one of noise: do changes carry over more?"""
    pairs_of = list(zip(found[::2], found[1::2], strict=True))
    told = [f"{made['what']}: {beside(made)}, random changes of that size {ours(noise)}" for made, noise in pairs_of]
    carried = [made["interval"][0] > noise["interval"][1] for made, noise in pairs_of]
    return all_some_none(carried, "; ".join(told))


def sure_of_nothing(*found: dict[str, Any]) -> Said:
    """Networks are sure of noise when most of it gets a class above one half."""
    told = "; ".join(f"{e['what']}: {beside(e)}" for e in found)
    sure = [e["interval"][0] > 0.5 for e in found]
    return all_some_none(sure, told)


def unsure_of_random(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {ours(e)}" for e in found)
    low = [e["ours"] < 0.5 for e in found]
    return all_some_none(low, told)


def head_matters(soft: dict[str, Any], radial: dict[str, Any]) -> Said:
    words = f"{soft['what']}: {beside(soft)}; {radial['what']}: {beside(radial)}"
    return verdict(soft["interval"][0] > radial["interval"][1], words)


def linear_falls(*found: dict[str, Any]) -> Said:
    """The more linear network falls more often than the radial one, the last."""
    told = "; ".join(f"{e['what']}: {beside(e)}" for e in found)
    return verdict(all(e["interval"][0] > found[-1]["interval"][1] for e in found[:-1]), told)


def blobs(*found: dict[str, Any]) -> Said:
    """The centre matters where without it less confidence is left than without as many other patches."""
    told, central = [], []
    for e in found:
        left = {row["removed"]: row["after"] for row in e["rows"] if row["images"] == "fooling"}
        centre, edge = left["centre greyed"], left["as many others greyed"]
        told.append(
            f"{e['what'].split(',')[0]}: {share(centre)} confidence without the centre, {share(edge)} without others"
        )
        central.append(centre < edge)
    return all_some_none(central, "; ".join(told))


def parts_spared(*found: dict[str, Any]) -> Said:
    """One patch of sixteen away costs little where nine tenths of the confidence stay."""
    told, spared = [], []
    for e in found:
        row = next(r for r in e["rows"] if r["images"] == "fooling" and r["removed"] == "one patch greyed, mean")
        told.append(f"{e['what']}: {share(row['after'])} of {share(row['before'])}")
        spared.append(row["after"] > 0.9 * row["before"])
    return all_some_none(spared, "; ".join(told))


def fooling_carries(*found: dict[str, Any]) -> Said:
    """Images made for one network are seen as their class by others more often than with their pixels shuffled."""
    told, carried = [], []
    for e in found:
        others = [row for row in e["rows"] if f"made for {row['target']}," not in e["what"]]
        most = max(others, key=lambda row: row["called the class"])
        told.append(
            f"{e['what']}: {ours(e)} on average, most by {most['target']} ({share(most['called the class'])}, pixels "
            f"shuffled {share(most['pixels shuffled'])})"
        )
        carried.append(most["interval"][0] > most["pixels shuffled"])
    return all_some_none(carried, "; ".join(told))


def digits_appear(*found: dict[str, Any]) -> Said:
    """Blurred images show their digits where the hardened network, nearer to people, names most, and not fewer."""
    told, holds = [], []
    for e in found:
        bare, *soft = e["rows"]["mnist-cnn-robust"]
        best = max(soft, key=lambda row: row["called the class"])
        told.append(
            f"{e['what']}: {share(bare['called the class'])} of {bare['n']} as they are, at best "
            f"{share(best['called the class'])} (by {best['sigma']:g} pixels; with their pixels shuffled "
            f"{share(best['pixels shuffled'])})"
        )
        holds.append(best["called the class"] > max(0.5, bare["called the class"] - 1e-9))
    return all_some_none(holds, f"{'; '.join(told)}; a hardened network judges instead of people")


def searches(found: dict[str, Any]) -> dict[str, float]:
    """Return what the evolution of every round reached against the last network, and what others found there."""
    return {"the same evolution": found["ours"], **found.get("found", {})}


def fooled_after_rounds(*found: dict[str, Any]) -> Said:
    told, still = [], []
    for e in found:
        reached = ", ".join(f"{how} {value:.2%}" for how, value in searches(e).items())
        told.append(f"{e['what']}: {reached} (before {share(e['rows'][0]['median confidence'])})")
        still.append(max(searches(e).values()) > 0.98)
    return all_some_none(still, "; ".join(told))


def unknown_class(*found: dict[str, Any]) -> Said:
    """An output for nothing known helps where no search makes the network sure any more."""
    told = []
    for e in found:
        last = e["rows"][-1]
        told.append(
            f"{e['what']}: at most {max(searches(e).values()):.2%}, although "
            f"{share(last['old fooling images refused'])} of the older images are refused and "
            f"{share(last['natural images refused'])} of natural ones"
        )
    return all_some_none([max(searches(e).values()) < 0.5 for e in found], "; ".join(told))


def exponents(along: dict[str, Any], random: dict[str, Any]) -> Said:
    words = (
        f"with the dimension n the effect on a linear score grows as n^{along['ours']:.2f}, that of random signs as "
        f"n^{random['ours']:.2f} ({along['n']} targets)"
    )
    return verdict(abs(along["ours"] - 1) < 0.05 and abs(random["ours"] - 0.5) < 0.05, words)


def piecewise_linear(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {e['ours']:.3f}, random directions {e['r2_pieces_random']:.3f}" for e in found)
    return all_some_none([e["interval"][0] > 0.9 for e in found], told)


def nearer_in_the_input(*found: dict[str, Any]) -> Said:
    """Nearer to linear in the input at the same relative step, and at steps of the same foretold effect."""
    told, holds = [], []
    for e in found:
        told.append(
            f"{e['what'].rpartition(', ')[2]}: at a step of 3% a linear expansion misses {share(e['input'])} in the "
            f"input and {share(e['parameters'])} in the parameters, at the same effect "
            f"{share(e['input_same_effect'])} and {share(e['parameters_same_effect'])}"
        )
        holds += [e["input"] < e["parameters"], e["input_same_effect"] < e["parameters_same_effect"]]
    return all_some_none(holds, "; ".join(told))


def of_one_class(found: dict[str, Any]) -> Said:
    rows = {row["group"]: row for row in found["rows"]}
    inside = {name: rows[name]["share"] for name in ("adversarial others", "fooling images")}
    natural, hidden = rows["natural bird"]["share"], rows["adversarial bird"]["share"]
    words = (
        f"ResNet-20 calls a bird {share(inside['adversarial others'])} of other animals and things changed by at most "
        f"8/255 and {share(inside['fooling images'])} of images climbed from noise, and finds {share(natural)} of "
        f"natural birds, {share(hidden)} of birds so changed; of uniform noise "
        f"{share(rows['uniform noise']['share'])}"
    )
    return verdict(min(inside.values()) > 0.5 and hidden < natural / 2, words)


HYPOTHESES = {
    "overfitting": ("digits-cnn", "mnist-cnn"),
    "linearity": ("digits-cnn", "digits-cnn-robust", "mnist-cnn", "mnist-cnn-robust", "ResNet-20"),
    "dimension": ("digits-cnn", "mnist-cnn"),
    "features": ("digits-cnn", "mnist-cnn"),
    "patches": ("digits-cnn", "digits-cnn-robust", "mnist-cnn", "mnist-cnn-robust", "ResNet-20"),
    "dimpled manifold": ("digits-cnn", "digits-cnn-robust", "mnist-cnn", "mnist-cnn-robust", "ResNet-20"),
}


def hypothesis(*names: str) -> tuple[str, ...]:
    """Return the keys of hypotheses on all their targets."""
    return tuple(f"hypotheses/{name}/{target}" for name in names for target in HYPOTHESES[name])


def told_by_target(found: tuple[dict[str, Any], ...]) -> str:
    parts: dict[str, list[str]] = {}
    for e in found:
        name, _, target = e["what"].partition(": ")
        parts.setdefault(f"{name} as the cause: {e['ours']}", []).append(f"{target.partition(',')[0]} ({e['n']})")
    return "; ".join(f"{said} on {', '.join(targets)}" for said, targets in parts.items())


def supported(*found: dict[str, Any]) -> Said:
    """Reproduced where every target supports the hypothesis, contradicted where every target speaks against it."""
    said = {e["ours"] for e in found}
    only = {"supported": REPRODUCED, "contradicted": CONTRADICTED, "undecided": OPEN}
    return (only[said.pop()] if len(said) == 1 else MIXED), told_by_target(found)


def only_a_start(*found: dict[str, Any]) -> Said:
    """'The loss grows that way' would be all, if linearity held on every target and nothing else did anywhere."""
    linear = [e for e in found if e["what"].startswith("linearity")]
    others = [e for e in found if e not in linear]
    whole = all(e["ours"] == "supported" for e in linear) and not any(e["ours"] == "supported" for e in others)
    return verdict(not whole, told_by_target(found))


def principled(analytic: dict[str, Any], *trained: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {ours(e)}" for e in (analytic, *trained))
    return verdict(analytic["ours"] == 0 and all(e["interval"][0] > 0.5 for e in trained), told)


def rare_and_near(*found: dict[str, Any]) -> Said:
    """Spheres: no error on fresh points, an error around nearly every point, and axes that allow errors."""
    told, holds = [], []
    for e in found:
        row = e["row"]
        wrong, of = row["errors_inner"] + row["errors_outer"], 2 * row["tested"]
        axes = f", {row['axes_wrong']} of {row['axes']} axes wrong" if row["axes"] else ""
        told.append(
            f"the {row['model']} network errs on {wrong:,} of {of:,} fresh points, and an error was found near "
            f"{share(row['found'])} of them, {row['distance']:.2f} away on average{axes}"
        )
        holds += [wrong == 0, row["found"] > 0.99]
    return all_some_none(holds, "; ".join(told))


def bound_holds(*found: dict[str, Any]) -> Said:
    """Errors are as near as a theorem says they must be: something is known, and it is unavoidable there."""
    told = [
        f"the {e['row']['model']} network's errors lie {e['row']['distance']:.2f} away on average, where its error "
        f"rate allows no model more than {e['row']['bound']:.2f}"
        for e in found
    ]
    holds = all(e["row"]["distance"] <= e["row"]["bound"] for e in found)
    words = f"on two spheres it is unavoidable unless nothing errs, and that is a theorem: {'; '.join(told)}"
    return (MIXED if holds else CONTRADICTED), words


def sure_images(*found: dict[str, Any], least: float = 0.996) -> Said:
    told = "; ".join(f"{e['what']}: {sure(e['median'])} (lowest {sure(e['lowest'])}, n = {e['n']})" for e in found)
    return all_some_none([e["median"] >= least for e in found], told)


def sure_soon(*found: dict[str, Any]) -> Said:
    """Every class above 99.99% within 200 generations, in every run."""
    told, holds = [], []
    for e in found:
        reached = e["generations_to_all"]
        told.append(f"{e['what']}: {sure(e['median'])}, all classes above 99.99% after {reached} generations by run")
        holds.append(all(g is not None and g <= 200 for g in reached))
    return all_some_none(holds, "; ".join(told))


def diverse(images: dict[str, Any], spread: dict[str, Any]) -> Said:
    runs, apart = len(images["forward"]), spread["ours"]
    words = (
        f"{images['what']}: {sure(images['median'])} in {runs} runs; {spread['what']}: {apart:.3f}, images of other "
        f"classes {spread['other']:.3f}, random images {spread['control']:.3f}"
    )
    return verdict(images["median"] >= 0.9912 and runs >= 5 and apart > spread["control"] / 2, words)


def filled_share(*found: dict[str, Any]) -> Said:
    """A volume is known where the estimate has an interval and nothing speaks against its chains."""
    told, known = [], []
    for e in found:
        total = next(row for row in e["rows"] if row["event"] == "total")
        told.append(
            f"{e['what']}: 10^{total['log10']:.2f} (95% interval 10^{total['low']:.2f} to 10^{total['high']:.2f}; "
            f"plain draws {share(total['monte_carlo'])})"
        )
        known.append(not total["warning"])
    return all_some_none(known, "; ".join(told))


def off_the_data(*found: dict[str, Any]) -> Said:
    """Perturbations lie outside if no more of them is along the data's directions than of a random change."""
    told, holds = [], []
    for e in found:
        by = {row["change"]: row for row in e["rows"]}
        own, random, natural = (by[name] for name in ("adversarial", "random, same size", "natural, other class"))
        told.append(f"{e['what']}: {ours(e)}, random {share(random['on'])}, natural differences {share(natural['on'])}")
        holds.append(own["low"] <= random["high"])
    return all_some_none(holds, "; ".join(told))


def aliased(*found: dict[str, Any]) -> Said:
    """Pairs of a plain and a hardened network: the hardened one should fold back less."""
    told = [f"{e['what']}: {ours(e)}" for e in found]
    less = [hard["interval"][1] < plain["interval"][0] for plain, hard in zip(found[::2], found[1::2], strict=True)]
    return all_some_none(less, "; ".join(told))


def climbed(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {e['ours']} of {e['n']}" for e in found)
    return all_some_none([e["ours"] == e["n"] for e in found], told)


def activated(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {ours(e)} of {e['n']}" for e in found)
    return all_some_none([e["ours"] > 0.5 for e in found], told)


def look_alikes(*found: dict[str, Any]) -> Said:
    """Doppelgängers among the other class where most neighbours in the network's own features are of that class."""
    told = "; ".join(f"{e['what']}: {ours(e)}" for e in found)
    return all_some_none([e["ours"] > 0.5 for e in found], told)


def to_the_eye(*found: dict[str, Any]) -> Said:
    told = "; ".join(f"{e['what']}: {e['ours']:.2f}" for e in found)
    return UNDECIDABLE, f"whom they look like needs people; what can be counted: {told}"


def learned_from_changes(*found: dict[str, Any]) -> Said:
    """Nets that learn nothing but changed images read natural ones better than guessing does."""
    told, holds = [], []
    for e in found:
        rows = e["rows"]
        told.append(
            f"{e['what'].partition(': ')[2]}: "
            + ", ".join(f"{r['prediction']} {share(r['value'])} (unchanged images {share(r['control'])})" for r in rows)
        )
        holds += [r["low"] > 0.1 for r in rows]
    return all_some_none(holds, f"{'; '.join(told)}")


def cleaner_apart(plain: dict[str, Any], hardened: dict[str, Any]) -> Said:
    words = f"{hardened['what']}: {ours(hardened)}; {plain['what']}: {ours(plain)}"
    return verdict(hardened["interval"][0] > plain["interval"][1], words)


def above_chance(*found: dict[str, Any]) -> Said:
    """Accuracy of nets that learn changed images and new labels alone; ten classes."""
    told = "; ".join(f"{e['what']}: {beside(e)}" for e in found)
    return all_some_none([e["interval"][0] > 0.1 for e in found], told)


# ---- rows

EQUATIONS = "tests/claims/test_equations.py::"
STRETCH = "the gradients or hardened networks of larger trainings"
READING = "a work that the text points to, no statement of its own"
QUIZ = "a quiz for people"
OPINION = "an opinion; nothing measurable follows from it"

SECTIONS: dict[str, list[Row]] = {}


def section(title: str) -> Callable[..., None]:
    """Start a section and return what adds a row to it."""
    rows = SECTIONS.setdefault(title, [])

    def row(name: str, claim: str, *parts: Part) -> None:
        rows.append(Row(name, claim, parts))

    return row


# fmt: off
row = section("Ironing out the squiggles: an essay")
row("A001", "Inputs that look ordinary to people are something else entirely to a model",
    measured("standard/cifar_resnet20", by=small_change))
row("A002", "Training by gradient descent on the weights fits a function to the data",
    tested("tests/test_fit.py::test_it_learns_what_a_line_can_separate"))
row("A003", "The same gradient, taken at the pixels, lowers or raises the loss, by its sign",
    tested(EQUATIONS + "test_one_gradient_leads_away_from_a_class_or_towards_one"))
row("A004", "A tiny step along it makes the classifier wrong and utterly sure",
    measured("claims/step cifar_resnet20 1/255", by=tiny_step), measured("claims/step mnist-cnn 0.25", by=tiny_step))
row("A005", "The steepest way up is exactly opposite to the steepest way down",
    tested(EQUATIONS + "test_steepest_up_is_exactly_opposite_to_steepest_down"))
row("A006", "The sensitivity is to many pixels moving together, and grows with their number",
    measured("claims/pixels digits-cnn", by=together),
    measured("linearity/growth", "linearity/growth random", by=exponents))
row("A007", "Why it matters that a classifier fails on inputs made to fool it",
    undecidable("a question of purpose; who may send what is part of every number here, as its threat", "README.md"))
row("A008", "Is it a bird? Birds that are no birds to the network, and the reverse",
    measured("geometry/bird", by=of_one_class))
row("A009", "The learned class is a squiggly set that holds obvious non-members and lacks obvious members",
    measured("geometry/bird", by=of_one_class))
row("A010", "'The loss grows in this direction' only begins an explanation",
    measured(*hypothesis(*HYPOTHESES), by=only_a_start))
row("A011", "First hypothesis: the quirks of one overfitted solution",
    measured(*hypothesis("overfitting"), by=supported))
row("A012", "A principled design would do better than what descent finds",
    measured("spheres/analytic found", "spheres/quadratic found", "spheres/relu found", by=principled))
row("A013", "As a program that passed its tests has bugs elsewhere: others would have other bugs",
    measured("halves/family: softmax regression", "halves/family: mnist-cnn", "halves/family: forest",
        by=shared_errors))
row("A014", "Adversarial examples carry over between models, often to the same wrong class",
    measured(*TRANSFER, by=carries_over), measured(*TRANSFER, by=same_class))
row("A015", "Trained on adversarial examples alone, a network reads the original test images",
    measured("features/cifar10, random labels, clean", "features/cifar10, shifted labels, clean", by=above_chance),
    measured(*hypothesis("features"), by=learned_from_changes))
row("A016", "Concentric spheres: no error in many samples, and yet points near every sample are wrong",
    measured("spheres/quadratic errors", "spheres/relu errors", by=rare_and_near))
row("A017", "Train on the worst point that an inner maximisation finds",
    tested("tests/test_fit.py::test_adversarial_training_is_trained_on_what_the_attack_returns",
        "tests/test_harden.py::test_on_a_linear_model_it_is_the_closed_form"),
    measured("standard/digits-cnn", "standard/digits-cnn-robust", by=training))
row("A018", "Robust classification needs larger models", measured(*SIZES, by=larger))
row("A019", "Large L2 attacks on a robust MNIST network look like other digits",
    measured("visual/gradients mnist-cnn", "visual/gradients mnist-cnn-robust", by=to_the_eye))
row("A020", "Attacks on hardened networks change what people see; random changes of that size do not",
    tested(EQUATIONS + "test_the_largest_distance_between_two_pictures_of_224_pixels_is_388",
        says="the arithmetic of distances holds"), undecidable("the rest needs people who look for under a second"))
row("A021", "Robust MNIST networks still fall to attacks by decisions alone",
    measured("claims/decision mnist-cnn-robust", by=labels_near))
row("A022", "Can more computing power, capacity and data iron out the squiggles?",
    measured("capacity/width 0.25, 1000 images, pgd", "capacity/width 0.5, 1000 images, pgd",
        "capacity/width 1, 1000 images, pgd", "capacity/width 2, 1000 images, pgd", by=ironed_out))

row = section("An introduction to adversarial attacks")
row("A023", "Networks are fooled while the picture looks normal", measured("standard/cifar_resnet20", by=small_change))
row("A024", "A panda is changed so that it is an ostrich",
    tested("tests/test_panda.py::test_the_panda_is_turned_into_another_animal"),
    measured("claims/panda ostrich", by=panda_turned))
row("A025", "The world is exposed: cars, faces, traffic cameras",
    tested("tests/test_spatial.py::test_a_street_sign_is_another_thing_from_every_side",
        says="a photographed street sign fools from most of twenty simulated poses"),
    missing("a printed sign and a real camera"))
row("A026", "A stop sign becomes a speed limit", missing("a classifier of traffic signs"))
row("A027", "Changed characters or words flip a sentiment", missing("attacks on texts beyond the engine's own tests"))
row("A028", "The fast gradient sign method", tested("tests/test_recipes.py::test_fgsm"))
row("A029", "Plain gradient descent on the input", tested("tests/test_recipes.py::test_pixel_gradient"))
row("A030", "Examples carry over from a convolutional network to linear and other models",
    measured("halves/family: mnist-cnn", by=across_families))
row("A031", "Any model can be attacked: linear, deep, convolutional, recurrent",
    tested("tests/test_regressor.py::test_a_linear_regressor_falls_at_the_exact_distance_and_not_before",
        "tests/test_sklearn.py::test_gradient_attacks_reach_the_exact_distance_and_never_less",
        "tests/test_sklearn.py::test_black_box_attacks_break_what_is_asked",
        "tests/test_callables.py::test_recurrent_networks_fall_on_sequences_of_any_length",
        says="linear regression, logistic regression, support vectors, forests, neighbours, recurrent networks"),
    measured("standard/cifar_resnet20", by=small_change))
row("A032", "White-box attacks use gradients", tested("tests/test_contract.py::test_found_above_the_exact_distance"))
row("A033", "Black-box attacks use inputs and outputs alone",
    measured("queries/mnist-cnn/square/linf/unfooled", "queries/mnist-cnn/ray/linf/unfooled", by=black_box))
row("A034", "Models see otherwise than people do",
    undecidable("what people see needs people; what can be measured is how small a change suffices (A001)"))
row("A035", "Reactive defence: a second classifier rejects adversarial inputs",
    measured("detectors/digits-input-seen", "detectors/digits-input-joint", by=refused))
row("A036", "Reactive defence doubles the infrastructure",
    measured("detectors/digits-input-cost", "detectors/digits-unsure-cost", "detectors/digits-mahalanobis-cost",
        by=doubled))
row("A037", "Proactive defence: adversarial training",
    measured("standard/digits-cnn", "standard/digits-cnn-robust", by=training))
row("A038", "Adversarial training also raises the accuracy on clean images",
    measured("claims/hardened digits", "claims/hardened mnist", by=cleaner),
    measured("features/cifar10, standard, clean", "features/cifar10, hardened at l2(0.5), clean", by=cleaner_apart),
    measured("pair/difference, the 1,000 test images", "pair/difference, 5,000 held-out training images", by=raised))
row("A039", "Solved, it would open the way to design by optimising a model's input",
    missing("a design task with a scorer that can be fooled"))
row("A040", "A few characters or words, and the sentiment flips", missing("a sentence before and after"))

row = section("Why linear is enough: a discussion")
row("A041", "Not nonlinearity or overfitting: linear behaviour is the cause",
    measured("agreement/fgsm-softmax", "agreement/fgsm-maxout", "agreement/fgsm-rbf", by=linear_falls),
    measured(*hypothesis("linearity"), by=supported))
row("A042", "Linear behaviour in many dimensions suffices",
    tested(EQUATIONS + "test_the_gain_grows_with_the_dimension_and_that_of_noise_with_its_root"),
    measured("linearity/growth", "linearity/growth random", by=exponents))
row("A043", "w·(x + η) = w·x + w·η", tested(EQUATIONS + "test_the_score_changes_by_the_product_of_weights_and_change"))
row("A044", "In the max norm η = ε sign(w) is best and adds ε‖w‖₁",
    tested(EQUATIONS + "test_eps_times_the_l1_norm_is_the_most_that_a_change_can_add"))
row("A045", "η = ε sign(∇ₓJ)", tested("tests/test_recipes.py::test_fgsm"))
row("A046", "Scores are piecewise linear in ε along the sign direction",
    measured("linearity/maxout 10", "linearity/mnist-cnn 10", "linearity/digits-cnn 10", "linearity/cifar_resnet20 1",
        by=piecewise_linear))
row("A047", "Different architectures, trained on different subsets, fail on the same example",
    measured(*carried_to(SAME_HALF), *carried_to(OTHER_HALF), by=halves))
row("A048", "On ImageNet the changes cannot be told by eye", measured("claims/panda gibbon", by=panda_turned))
row("A049", "A Potemkin village: right on natural data, exposed where data are scarce",
    measured("rubbish/maxout", "rubbish/mnist-cnn", by=sure_of_nothing))
row("A050", "Nonlinear in its parameters, nearly linear in its input",
    measured("linearity/maxout local", "linearity/mnist-cnn local", "linearity/cifar_resnet20 local",
        by=nearer_in_the_input))
row("A051", "The graph of outputs against the perturbation", measured("linearity/maxout 10", by=piecewise_linear))
row("A052", "A lecture on adversarial examples", undecidable(READING))
row("A053", "An article on misconceptions about adversarial examples", undecidable(READING))
row("A054", "Two tutorials", undecidable(READING))

row = section("How can networks be fooled so easily? Questions and answers")
row("A055", "Evolved images, direct and indirect, of which the network is at least 99.6% sure",
    measured("fooling/mobilenet_v2 direct", "fooling/mobilenet_v2 cppn", by=sure_images),
    missing("thousands of generations on a thousand classes: these few say nothing of where they would end"))
row("A056", "Diverse evolved images, mean confidence 99.12%, five runs",
    measured("fooling/mnist-cnn cppn", "fooling/mnist-cnn cppn diversity", by=diverse))
row("A057", "Stripes make a school bus: no windscreen or wheels needed",
    missing("fooling images with parts taken away"))
row("A058", "How can they be fooled so easily?", undecidable("a question; our answer", "docs/why.md"))
row("A059", "Whatever follows rules can be fooled, some more easily",
    tested("tests/test_sklearn.py::test_black_box_attacks_break_what_is_asked",
        "tests/test_sklearn.py::test_gradient_attacks_reach_the_exact_distance_and_never_less",
        says="trees, forests, neighbours and linear models fall too; that all systems do cannot be shown by examples"))
row("A060", "People are fooled too, but otherwise; networks read noise that people cannot",
    undecidable("needs people before the same noisy images"))
row("A061", "AlexNet, as trained in Caffe", missing("its weights; MobileNetV2 and SqueezeNet stand in"))
row("A062", "An evolution engine with published code",
    tested("tests/test_evolve.py::test_the_shipped_target_is_fooled_by_both_encodings",
        says="an engine of our own on the archive of pyribs"))
row("A063", "Fooling images by gradient ascent",
    tested("tests/test_ascent.py::test_a_linear_target_is_fooled_in_every_class",
        "tests/test_ascent.py::test_two_classes_meet_the_closed_form"),
    measured("visual/ascent mnist-cnn", "visual/ascent digits-cnn", by=climbed))
row("A064", "Random images get low confidence in all classes",
    measured("rubbish/random-mobilenet_v2", "rubbish/random-cifar_resnet20", "rubbish/random-mnist-cnn",
        "rubbish/random-digits-cnn", by=unsure_of_random))
row("A065", "Recognisable images were wanted, unrecognisable ones came out",
    undecidable("what is recognisable needs people"))
row("A066", "Static that fools has small blobs near the centre", measured("rubbish/ablated-direct", by=blobs))
row("A067", "Fooling images carry features that tell the class apart",
    measured("rubbish/ablated-direct", "rubbish/ablated-cppn", by=parts_spared))
row("A068", "Why a bagel and not a sun? The choice is among the known classes alone",
    tested(EQUATIONS + "test_a_classifier_answers_whatever_it_is_shown_unless_it_may_refuse"))
row("A069", "People need not recognise anything; networks must",
    tested(EQUATIONS + "test_a_classifier_answers_whatever_it_is_shown_unless_it_may_refuse",
        says="what networks must is in the last layer; about people nothing is measured"))
row("A070", "MNIST: static and patterns read as digits at 99.99%",
    measured("fooling/mnist-cnn direct", "fooling/mnist-cnn cppn", by=sure_soon))
row("A071", "A right image, imperceptibly changed, gets another class (L-BFGS)",
    measured("shelf/mnist-cnn/lbfgs/l2/unfooled", by=smallest))
row("A072", "Networks use features, people the whole", measured(*hypothesis("patches"), by=supported))
row("A073", "Retrained with fooling images as a class of their own: ImageNet networks improve, MNIST networks do not",
    measured("rounds/mnist-direct", "rounds/mnist-cppn", "rounds/digits-direct", "rounds/digits-cppn",
        by=fooled_after_rounds), missing("an ImageNet network retrained"))
row("A074", "Without architecture and weights a network cannot be fooled",
    measured("queries/mnist-cnn/square/linf/unfooled", "queries/mnist-cnn/ray/linf/unfooled", by=reversed_(black_box)))
row("A075", "The same fooling image does not work on other networks", measured(*TRANSFER, by=reversed_(carries_over)),
    measured("rubbish/carried-direct-mnist-cnn", "rubbish/carried-cppn-mnist-cnn", by=reversed_(fooling_carries)))
row("A076", "Data fill a small part of 3,072 dimensions; outside the network extrapolates linearly",
    measured("manifold/mnist-cnn: share, PCA", "manifold/digits-cnn: share, PCA", "manifold/ResNet-20: share, PCA",
        by=off_the_data), measured(*hypothesis("dimpled manifold"), by=supported))
row("A077", "The attacker need only go to the nearest badly extrapolated point",
    tested("tests/test_milp.py::test_the_smallest_changes_are_as_near_as_stated_and_never_nearer",
        says="attacks come to the nearest such point of small networks, known exactly"))
row("A078", "Logistic regression by hand: p = 0.0474 becomes 0.88 by ±0.5",
    tested("tests/test_logistic.py::test_the_step_turns_a_probability_of_0_0474_into_0_8808"))
row("A079", "The vectors x, w and y of that example",
    tested("tests/test_logistic.py::test_the_page_shows_what_the_example_prints", says="docs/logistic.md"))
row("A080", "In general: want a class, go back to the data in small steps, network fixed",
    tested("tests/test_engine.py::test_a_targeted_goal_counts_the_wanted_class_alone",
        "tests/test_recipes.py::test_pixel_gradient"))
row("A081", "It holds for any network and any data: image, audio, video, text",
    tested("tests/test_text.py::test_texts_are_attacked_and_what_counts_is_checked",
        "tests/test_callables.py::test_recurrent_networks_fall_on_sequences_of_any_length",
        says="images, tables, sequences and, by a toy attack, texts"), missing("audio and video"))
row("A082", "Defence: let several networks vote", measured(*votes("composite_fgsm"), by=vote))
row("A083", "Several networks at once are harder to attack than one at a time",
    measured(*jointly_keys("composite_fgsm"), *jointly_keys("mi_fgsm"), by=jointly))
row("A084", "Defence: smooth the input", measured("claims/blur 0.5", "claims/blur 1.0", by=blurred))
row("A085", "Put to use: deconvolution and pictures of neurons",
    tested("tests/test_visualise.py::test_attributions_are_those_of_captum",
        "tests/test_visualise.py::test_one_neuron_s_picture_is_its_filter"))
row("A086", "An image that activates a given neuron",
    tested("tests/test_visualise.py::test_one_neuron_s_picture_is_its_filter"),
    measured("visual/inside mnist-cnn 2", by=activated))
row("A087", "Networks match patches against a dictionary of patches", measured(*hypothesis("patches"), by=supported))
row("A088", "No view of the whole; images are scaled down", missing("images in shuffled patches, and at other sizes"))
row("A089", "Networks are all but certain of fooling images",
    measured("fooling/mnist-cnn direct", "fooling/mnist-cnn cppn", "fooling/digits-cnn direct",
        "fooling/digits-cnn cppn", by=sure_images))
row("A090", "How much of image space such images fill can be told",
    measured("volume/digits-cnn total 0.99", "volume/digits-cnn-robust total 0.99", by=filled_share))
row("A091", "Work on questions about pictures", undecidable(READING))
row("A092", "It may be unavoidable, and nothing is known",
    measured("spheres/quadratic errors", "spheres/relu errors", by=bound_holds))
row("A093", "Which of these cats is the house cat?", undecidable(QUIZ))
row("A094", "Work on attacks on visualisations, and on training", undecidable(READING))
row("A095", "It is like aliasing, the wheel that turns backwards",
    measured("manifold/digits-cnn: aliasing", "manifold/digits-cnn-robust: aliasing", "manifold/mnist-cnn: aliasing",
        "manifold/mnist-cnn-robust: aliasing", by=aliased))
row("A096", "Never trained to reject, a network has no notion of wrong",
    measured("rubbish/maxout", "rubbish/rbf", by=head_matters))
row("A097", "'Are we there yet': a quiz with unknowns", undecidable(QUIZ))
row("A098", "Structured noise fools because what does not tell classes apart is ignored",
    tested(EQUATIONS + "test_what_a_linear_classifier_ignores_may_be_anything",
        says="exactly so for a linear classifier: noise with a digit's part along nine directions is that digit"))
row("A099", "A jaguar detector matches spots and ignores legs", measured("hypotheses/patches/ResNet-20", by=supported))
row("A100", "High confidence comes of local linearity and many dimensions",
    measured(*hypothesis("linearity", "dimension"), by=supported))
row("A101", "Work on generating from discriminative weights", undecidable(READING))
row("A102", "The network only says what an image is most like",
    tested(EQUATIONS + "test_a_softmax_says_only_which_class_is_likelier_than_the_others"))
row("A103", "Blurred, MNIST fooling images show their digits",
    measured("rubbish/blurred-direct", "rubbish/blurred-cppn", by=digits_appear))
row("A104", "An output for 'nothing I know' keeps fooling images out",
    measured("rounds/mnist-direct", "rounds/mnist-cppn", "rounds/digits-direct", "rounds/digits-cppn",
        by=unknown_class))
row("A105", "An elephant that is none: 'what is this, of the animals you know?'", undecidable(QUIZ))
row("A106", "An irrelevant sentence misleads readers of questions", missing("a question-answering target"))
row("A107", "Networks see combinations of features in many dimensions",
    measured("claims/pixels digits-cnn", by=together))
row("A108", "One change for all images",
    tested("tests/test_learned.py::test_on_a_linear_target_it_is_the_steepest_change_and_fools_what_that_fools"),
    measured("transfer/universal() mnist-cnn 0.2", "transfer/universal() mnist_256x2 0.2", by=universal))
row("A109", "The change learned on VGG-19 fools every other network on more than 53%",
    missing("the weights of these six networks"))
row("A110", "Defence: fine-tune with many such changes",
    measured("finetuning/fresh, round 0", "finetuning/fresh, round 5", "finetuning/standard, round 5", by=tuned))
row("A111", "Repeated, it gains nothing more: about 80% whatever the round",
    measured("finetuning/fresh, round 1", "finetuning/fresh, round 5", by=no_more))
row("A112", "It shows shallow matching of patterns, hardly understanding", undecidable(OPINION))
row("A113", "Asked how people are fooled so easily, one would not go deep", undecidable(OPINION))
row("A114", "Security will be seen to once attacks cost companies money", undecidable("a forecast about companies"))

row = section("Lecture slides")
row("A115", "Gradient descent on the weights", tested("tests/test_fit.py::test_it_learns_what_a_line_can_separate"))
row("A116", "x ← x ± η∇ₓJ, both signs", tested(EQUATIONS + "test_one_gradient_leads_away_from_a_class_or_towards_one"))
row("A117", "A panda goes down the gradient to a vulture",
    tested("tests/test_panda.py::test_the_panda_is_turned_into_another_animal"),
    measured("claims/panda vulture", by=panda_turned))
row("A118", "Panda (58%) plus noise is gibbon (99%), one step of 0.007", measured("claims/panda step", by=panda_step),
    measured("claims/panda gibbon", by=panda_turned))
row("A119", "A small worst-case change is enough where noise is not",
    measured("claims/step cifar_resnet20 1/255", by=noise_control),
    measured("claims/step mnist-cnn 0.25", by=noise_control))
row("A120", "Adversarial examples are doppelgängers: to the network they are among the other class",
    measured("visual/nearest mnist-cnn", "visual/nearest digits-cnn", by=look_alikes))
row("A121", "A photograph of a person becomes a fiddler crab",
    undecidable("we have no such photograph to show; the same command on another picture",
        "tests/test_cli.py::test_attack_makes_a_file_that_fools"))
row("A122", "Harder training (dropout, noise) makes stronger models",
    measured("recipes/digits, standard", "recipes/digits, dropout", "recipes/digits, noise", "recipes/digits, mixed",
        "recipes/digits, pgd", by=hard_training))
row("A123", "Adversarial training generalises better",
    measured("claims/hardened digits", "claims/hardened mnist", by=cleaner),
    measured("features/cifar10, standard, clean", "features/cifar10, hardened at l2(0.5), clean", by=cleaner_apart))
row("A124", "The sign method leads away from the label, not to a chosen class",
    tested(EQUATIONS + "test_a_step_away_from_the_label_is_not_a_step_to_a_chosen_class"))
row("A125", "Just less than one bit of eight: 0.07 < 1/127 ≈ 0.08",
    refuted("tests/test_cli.py::test_the_slide_error_is_the_example",
        says="1/127 is 0.0079; 0.07 is a factor of ten too large"))
row("A126", "0.07 sign(∇ₓJ) has one size whatever the gradient",
    tested(EQUATIONS + "test_the_sign_makes_every_change_exactly_eps_whatever_the_gradient",
        EQUATIONS + "test_a_value_that_the_network_ignores_is_not_moved_by_the_sign",
        says="exactly ε, but for values whose gradient is 0"))
row("A127", "Make the examples anew in each iteration and store none",
    tested("tests/test_fit.py::test_adversarial_training_is_trained_on_what_the_attack_returns"))
row("A128", "J̃ = αJ(x) + (1 − α)J(x + ε sign ∇ₓJ)",
    tested("tests/test_harden.py::test_the_mix_is_the_sum_of_its_parts"))
row("A129", "More capacity is needed", measured(*SIZES, by=larger))
row("A130", "Stop early on the adversarial validation error alone",
    tested("tests/test_trainer.py::test_the_best_epoch_is_kept_by_what_was_asked_for"))
row("A131", "MNIST: 0.94% to 0.84% error, above dropout",
    measured("classic/clean-plain", "classic/clean-mixed", "classic/gain", by=cleaner_maxout))
row("A132", "Resistance: 89.4% to 17.9% error",
    measured("classic/fgsm-plain", "classic/fgsm-mixed", "classic/suite-mixed-0.25", by=resists))
row("A133", "Mathematical properties of adversarial examples (skipped on the slide)",
    undecidable(
        "a heading without a statement; exact here: the closed form on linear targets, the radii of small networks",
        EQUATIONS + "test_eps_times_the_l1_norm_is_the_most_that_a_change_can_add",
        "tests/test_exact.py::test_suites_lie_just_above_the_exact_radii"))

row = section("Where the texts err or contradict each other")
row("X1", "1/127 is about 0.08",
    refuted("tests/test_cli.py::test_the_slide_error_is_the_example", says="`unfooled eps 1/127` answers 0.0079"))
row("X2", "A black box cannot be fooled, and fooling images do not carry over",
    measured("queries/mnist-cnn/square/linf/unfooled", "queries/mnist-cnn/ray/linf/unfooled", by=reversed_(black_box)),
    measured("rubbish/carried-direct-mnist-cnn", "rubbish/carried-cppn-mnist-cnn", by=reversed_(fooling_carries)))
row("X3", "An ensemble is the simplest protection", measured(*votes("composite_fgsm"), by=vote))
row("X4", "Smoothing the input protects", measured("claims/blur 0.5", "claims/blur 1.0", by=blurred))
row("X5", "A sigmoid of 0.0474 means 95% for the first class (garbled in translation)",
    tested("tests/test_logistic.py::test_the_step_turns_a_probability_of_0_0474_into_0_8808",
        says="read as p(class 1) = 0.0474 and p(class 0) = 0.9526 the numbers hold, 0.8808 after the step"))
row("X6", "Adversarial training also raises clean accuracy",
    measured("claims/hardened digits", "claims/hardened mnist", by=cleaner),
    measured("features/cifar10, standard, clean", "features/cifar10, hardened at l2(0.5), clean", by=cleaner_apart))
row("X7", "After adversarial training 17.9% error with 97.6% confidence",
    missing("maxout networks trained both ways; as published, 97.6% belongs to the 89.4% before it"))
row("X8", "The panda becomes an ostrich, a vulture, a gibbon: one story told three ways",
    *(measured(f"claims/panda {wanted}", by=panda_turned) for wanted in ("ostrich", "vulture", "gibbon")))
row("X9", "Linear behaviour is the cause, and its adversarial logistic loss is the worst case",
    refuted(EQUATIONS + "test_the_worst_logistic_loss_holds_for_both_labels_and_the_printed_one_for_one",
        says="the printed loss is the worst case for y = 1 alone"), measured(*hypothesis("linearity"), by=supported))

# fmt: on


def rows() -> Iterator[Row]:
    """Yield every row."""
    for some in SECTIONS.values():
        yield from some


def awaited() -> list[str]:
    """Return the entries that rules name and nobody has measured yet."""
    named = {key for row in rows() for part in row.parts for key in part.keys}
    return sorted(key for key in named if entry(key) is None)


# ---- the page

HEAD = """# Claims, and what decides them

What five texts about adversarial examples claim, ask or name, each in our own short words, with the test or the
measurement that decides it. *Reproduced*: the test named asserts it, or the numbers named bear it out. *Contradicted*:
they show the opposite. *Mixed*: some of it holds. *Open*: the evidence does not exist yet, or leaves it undecided.
*Undecidable*: no program can decide it. Numbers come from `benchmarks/results`, with 95% intervals in parentheses;
results hold for the networks and images named, not for all.

*This page is written by `python docs/make_claims.py`; a test compares the two and looks every named test up.*
"""


def page() -> str:
    """Return the text of docs/claims.md."""
    decided = {row.name: row.decide() for row in rows()}
    counts = Counter(result for result, _ in decided.values())
    parts = [
        HEAD,
        "## In short\n",
        _table(("result", "rows"), [(name, str(counts[name])) for name in RESULTS], right=1),
    ]
    wrong = [row for row in rows() if decided[row.name][0] == CONTRADICTED]
    parts += ["What we find to be wrong, on the targets measured:\n"]
    parts += ["\n".join(f"- {row.name}: {row.claim}. Found: {decided[row.name][1]}." for row in wrong) + "\n"]
    if absent := awaited():
        parts += ["Measurements that rows wait for: " + ", ".join(f"`{key}`" for key in absent) + ".\n"]
    for title, some in SECTIONS.items():
        lines = [
            (row.name, row.claim, f"**{decided[row.name][0]}**", decided[row.name][1], _proofs(row)) for row in some
        ]
        parts += [f"## {title}\n", _table(("", "claim", "result", "what was found", "decided by"), lines)]
    return "\n".join(parts)


def _proofs(row: Row) -> str:
    """Return links to the tests and pages, then to the results, the cases of one file together."""
    proofs = dict.fromkeys(proof for part in row.parts for proof in part.proofs)
    cases: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for part in row.parts for key in part.keys if entry(key)):
        table, case = key.split("/", 1)
        cases.setdefault(table, []).append(case.replace("`", ""))
    files = [f"[{table}](../benchmarks/results/{table}.json): {', '.join(some)}" for table, some in cases.items()]
    return "; ".join([*map(_link, proofs), *files])


def _link(proof: str) -> str:
    """Return a link to a test or a page."""
    file, _, name = proof.partition("::")
    return f"[{f'`{name}`' if name else file}](../{file})"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]], *, right: int = 0) -> str:
    align = (":--",) * (len(head) - right) + ("--:",) * right
    return (
        "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in (head, align, *lines))
        + "\n"
    )


# ---- the numbers of docs/why.md


def number(key: str, *path: str | int, of: str = "") -> Callable[[], str]:
    """Return what reads a share out of an entry: the value at `path`, divided by that at `of` where given."""

    def read() -> str:
        found: Any = entry(key)
        for name in path:
            found = found[name]
        whole = entry(key)
        return share(found / whole[of] if of and whole else found)

    return read


def group(name: str) -> Callable[[], str]:
    """Return what reads the share of one group of images that is called a bird."""

    def read() -> str:
        found = entry("geometry/bird") or {}
        return f"{next(row['share'] for row in found['rows'] if row['group'] == name):.0%}"

    return read


def box_share(key: str) -> Callable[[], str]:
    """Return what reads the share of the input box in any class."""

    def read() -> str:
        found = entry(key) or {}
        return f"{10 ** next(row['log10'] for row in found['rows'] if row['event'] == 'total'):.0%}"

    return read


def learned(key: str, prediction: int, classes: int = 10) -> Callable[[], str]:
    """Return what reads an accuracy out of one that is told beyond chance."""

    def read() -> str:
        beyond = (entry(key) or {})["rows"][prediction]["value"]
        return f"{1 / classes + (1 - 1 / classes) * beyond:.0%}"

    return read


def cause(name: str) -> Callable[[], str]:
    """Return what says on which targets a hypothesis is supported, contradicted or undecided."""

    def read() -> str:
        said: dict[str, list[str]] = {}
        for target in HYPOTHESES[name]:
            if found := entry(f"hypotheses/{name}/{target}"):
                said.setdefault(found["ours"], []).append(f"`{target}`")
        return "; ".join(f"{verdict} on {', '.join(targets)}" for verdict, targets in said.items())

    return read


def row_of(key: str) -> dict[str, Any]:
    """Return the raw row of an entry."""
    return dict((entry(key) or {})["row"])


VALUES: dict[str, Callable[[], str]] = {
    "digits plain": number("standard/digits-cnn", "unfooled", "robust", of="n"),
    "digits hardened": number("standard/digits-cnn-robust", "unfooled", "robust", of="n"),
    "digits one pixel": number("claims/pixels digits-cnn", "alone"),
    "cifar clean": number("standard/cifar_resnet20", "clean", of="n"),
    "cifar left": number("standard/cifar_resnet20", "unfooled", "robust", of="n"),
    "step confidence": number("claims/step cifar_resnet20 1/255", "confidence_on_errors"),
    "step noise": number("claims/step cifar_resnet20 1/255", "noise"),
    "panda before": lambda: f"{(entry('claims/panda gibbon') or {})['before']:.2%}",
    "panda after": lambda: f"{(entry('claims/panda gibbon') or {})['after']:.3%}",
    "along the gradient": number("volume/digits-cnn directions l2", "rows", -1, "gradient"),
    "along random": number("volume/digits-cnn directions l2", "ours"),
    "box": box_share("volume/digits-cnn total 0.99"),
    "birds found": group("natural bird"),
    "birds hidden": group("adversarial bird"),
    "birds made": group("adversarial others"),
    "birds of noise": group("uniform noise"),
    "learned from shifted": learned("hypotheses/features/digits-cnn", 0),
    "longer mnist": lambda: sure(max(searches(entry("rounds/mnist-direct") or {}).values())),
    "shifted mnist": learned("hypotheses/features/mnist-cnn", 0),
    "random mnist": learned("hypotheses/features/mnist-cnn", 1),
    "rounds digits": lambda: str(len((entry("rounds/digits-direct") or {})["rows"]) - 1),
    "rounds mnist": lambda: str(len((entry("rounds/mnist-direct") or {})["rows"]) - 1),
    "blur clean": number("claims/blur 1.0", "clean"),
    "blur clean without": number("claims/blur 1.0", "clean_without"),
    "blur unaware": number("claims/blur 1.0", "without"),
    "vote": number("transfer/ensemble composite_fgsm the vote itself, white-box", "hits", of="n"),
    "questions": lambda: f"{(entry('queries/mnist-cnn/ray/linf/unfooled') or {})['grid'][-1]:,}",
    "by answers": lambda: "{success[5]} of {n}".format(**(entry("queries/mnist-cnn/ray/linf/unfooled") or {})),
    "sphere rate": lambda: f"one of {round(10 ** -row_of('spheres/relu errors')['log10_error'], -4):,.0f}",
    "sphere bound": lambda: f"{row_of('spheres/relu errors')['bound']:.2f}",
    "carried pattern": number("rubbish/carried-cppn-mnist-cnn", "ours"),
    "refused": number("rounds/digits-direct", "rows", -1, "old fooling images refused"),
} | {f"cause {name}": cause(name) for name in HYPOTHESES}
"""Numbers by the name that their marker in docs/why.md has; `table/case` needs no name."""


def value(name: str) -> str:
    """Return the text of one marker: a named value, or `table/case`, or `table/case published`."""
    if name in VALUES:
        return VALUES[name]()
    key = name.removesuffix(" published")
    found = entry(key)
    if found is None:
        raise SystemExit(f"docs/why.md names {key!r}, and benchmarks/results holds no such entry.")
    return tables.valued(found, "ours" if key == name else "published")


def filled(text: str) -> str:
    """Return the page with every `<!-- value: NAME -->...<!-- end -->` filled from the results."""
    return re.sub(
        r"(<!-- value: (.*?) -->).*?(<!-- end -->)",
        lambda found: f"{found[1]}{value(found[2])}{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the page of claims and the numbers of the other."""
    PAGE.write_text(page(), encoding="utf-8")
    if WHY.is_file():
        WHY.write_text(filled(WHY.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
