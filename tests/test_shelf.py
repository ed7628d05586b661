"""The shelf's measuring: what is claimed is checked, queries are told apart, tables follow from the entries."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers, queries, shelf, tables
from benchmarks.peers import Question
from unfooled.attacks import parse


class Half(nn.Module):
    """Class 1 where the mean of the four values is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1) - 0.5
        return torch.stack([-lead, lead], 1)


def asked(norm: str = "linf", eps: float = 0.3, steps: int = 10) -> Question:
    """Two images 0.25 below the boundary in every value, one 0.4 below it."""
    x = torch.tensor([0.25, 0.25, 0.1]).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous()
    return Question(x, torch.zeros(3, dtype=torch.int64), norm, eps, steps, 0.25)


def moved(by: float) -> peers.Adapter:
    return lambda module, q: ((q.x + by), None)


def test_an_honest_implementation_is_believed() -> None:
    entry = shelf.measure(Half, asked(), moved(0.28))
    assert (entry["claimed"], entry["success"], entry["rejected"]) == (2, 2, 0)
    assert entry["distances"] == "0.28 0.28 -"


def test_points_outside_the_ball_are_rejected() -> None:
    entry = shelf.measure(Half, asked(), moved(0.31))
    assert (entry["claimed"], entry["success"], entry["rejected"]) == (2, 0, 2)
    assert entry["rejected_for"]["outside the ball"] == 2 and entry["median"] is None


def test_points_outside_the_box_are_rejected() -> None:
    def out(module: nn.Module, q: Question) -> peers.Found:
        x = q.x.clone()
        x[:, :, 0, 0] = 1.5
        x[:, :, 0, 1] = 0.6
        return x, None

    entry = shelf.measure(Half, asked("l2", math.inf), out)
    assert entry["rejected"] == 3 and entry["rejected_for"]["outside the box"] == 3


def test_a_changed_point_is_a_claim_where_the_smallest_change_is_asked() -> None:
    entry = shelf.measure(Half, asked("l2", math.inf), moved(0.26))
    assert (entry["claimed"], entry["success"], entry["rejected"]) == (3, 2, 1)
    assert entry["rejected_for"]["not adversarial"] == 1
    unchanged = shelf.measure(Half, asked("l2", math.inf), moved(0.0))
    assert (unchanged["claimed"], unchanged["rejected"]) == (0, 0)


def test_a_tie_is_no_success() -> None:
    entry = shelf.measure(Half, asked("l2", math.inf), moved(0.25))
    assert entry["success"] == 0 and entry["rejected"] == 3


def test_a_success_that_hangs_on_the_batch_is_rejected() -> None:
    class Company(Half):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if len(x) > 1 else -1)

    entry = shelf.measure(Company, asked("l2", math.inf), moved(0.26))
    assert entry["success"] == 0 and entry["rejected"] == 3


def test_what_raises_is_a_result() -> None:
    def broken(module: nn.Module, q: Question) -> peers.Found:
        raise IndexError("index -4 is out of bounds")

    assert shelf.measure(Half, asked(), broken) == {"failed": "IndexError: index -4 is out of bounds"}


def test_our_own_attacks_are_measured_and_counted() -> None:
    entry = shelf.measure(Half, asked(), shelf.ours("pgd(steps=10, start='clean')"))
    assert (entry["success"], entry["rejected"]) == (2, 0)
    assert 1 <= entry["backward"] <= 10 and entry["forward"] > entry["backward"] and entry["cpu_seconds"] > 0


@pytest.mark.parametrize("task", shelf.TASKS, ids=lambda task: f"{task.attack}-{task.norms[0]}")
def test_every_recipe_on_the_shelf_is_asked_with_settings_it_has(task: shelf.Task) -> None:
    if task.attack in shelf.RECIPES:
        attack = parse(task.recipe)
        x = torch.rand(2, 1, 8, 8)
        norms = set(task.norms) & set(shelf.RECIPES[task.attack].norms)
        assert norms
        for norm in norms:
            eps = math.inf if task.smallest else shelf.SETTINGS["digits-cnn"].eps[norm]
            assert attack.unfit(x, getattr(shelf.uf, norm)(eps), 10) == ""


def test_every_adapter_belongs_to_a_task_and_a_package() -> None:
    known = {task.attack for task in (*shelf.TASKS, *queries.TASKS)}
    assert set(peers.PEERS) <= known
    assert all(peer.library in peers.PACKAGES for found in peers.PEERS.values() for peer in found)


def recorder(n: int, **more: float) -> queries.Recorder:
    q = asked()
    return queries.Recorder(Half(), q.x[:n], q.y[:n], math.inf, grid=(1, 2, 4), **more)


def test_a_recorder_keeps_the_nearest_success_of_the_first_rows() -> None:
    watched = recorder(1)
    for by in (0.1, 0.5, 0.3, 0.26):
        watched(asked().x[:1] + by)
    assert watched.curve[0].tolist() == pytest.approx([math.inf, 0.5, 0.26])
    with pytest.raises(queries.Enough):
        watched(asked().x[:1])


def test_many_rows_at_once_count_one_by_one() -> None:
    watched = recorder(1)
    watched(asked().x[:1] + torch.tensor([0.1, 0.5, 0.3, 0.26, 0.25001]).view(5, 1, 1, 1))
    assert watched.curve[0].tolist() == pytest.approx([math.inf, 0.5, 0.26])


def test_rows_in_order_belong_to_their_images() -> None:
    watched = recorder(2)
    watched(asked().x[:2] + torch.tensor([0.1, 0.5]).view(2, 1, 1, 1))
    watched(asked().x[:2] + torch.tensor([0.3, 0.6]).view(2, 1, 1, 1))
    assert watched.curve.flatten().tolist() == pytest.approx([math.inf, 0.3, 0.3, 0.5, 0.5, 0.5])
    with pytest.raises(queries.OutOfOrder):
        watched(asked().x[:1])


def test_rows_of_unknown_order_belong_to_the_nearest_image() -> None:
    x = torch.tensor([[0.8, 0.1, 0.1, 0.6], [0.1, 0.8, 0.6, 0.1]]).view(2, 1, 2, 2)
    watched = queries.Recorder(Half(), x, torch.zeros(2, dtype=torch.int64), math.inf, nearest=0.2, grid=(1, 2, 4))
    watched(x.flip(0) + torch.tensor([0.15, 0.18]).view(2, 1, 1, 1))
    assert watched.curve[:, 0].tolist() == pytest.approx([0.18, 0.15])
    assert watched.count.tolist() == [1, 1]


def test_points_outside_the_box_reach_nothing() -> None:
    watched = recorder(1)
    watched(asked().x[:1] + 0.9)
    assert watched.curve[0, 0] == math.inf


def test_queries_of_our_own_attacks_keep_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "GRID", (5, 50))
    curve = queries.ours(Half, asked(), "ray(queries=50)")
    assert curve.shape == (3, 2) and curve[0, 1] <= 0.3 and curve[2, 1] == math.inf


def test_the_summary_compares_with_the_strongest_and_the_fastest() -> None:
    def made(side: str, distances: str, seconds: float, rejected: int = 0) -> dict[str, object]:
        found = [float(d) if d != "-" else math.inf for d in distances.split()]
        good = sorted(found)[len(found) // 2]
        return {
            "side": side, "eps": None, "norm": "l2", "budget": "9 steps", "n": len(found), "distances": distances,
            "success": sum(map(math.isfinite, found)), "claimed": 3, "rejected": rejected, "cpu_seconds": seconds,
            "median": good if math.isfinite(good) else None,
        }  # fmt: skip

    sides = {
        "unfooled": made("unfooled", "1 1 2", 2.0),
        "slow": made("slow", "1 1.2 2", 3.0),
        "weak": made("weak", "2 2 -", 0.1, rejected=3),
        "quick": made("quick", "1.205 1 2.1", 1.0),
    }
    row = tables._against("ddn", "l2", sides)  # medians 1, 1.2, 2, 1.205
    assert row[3:8] == ["slow", "100.0% → 100.0%", "1.2 → 1", "0 theirs, 1 ours", "quick"]
    assert row[8:] == ["1 → 2", "33.3%", "0.0%"]
