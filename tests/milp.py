"""Exact minimal Linf changes of small ReLU networks inside the box [0, 1], by mixed-integer programming.

The formulation of Tjeng, Xiao and Tedrake (2019, arXiv 1711.07356): a ReLU is two lines and one binary, big-M from
interval bounds. The ball is widened in stages, so that the bounds are those of a small ball; the solver's pattern of
active units is then fixed and the linear program solved again, so that no big-M tolerance is left in the answer.

`python -m tests.milp` solves all cases again (a few minutes) and writes tests/data/milp.json.
"""

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import Tensor, nn

FILE = Path(__file__).parent / "data" / "milp.json"
GRID = 1024  # weights are whole numbers over this, so that every machine has the same network
STAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
Layers = list[tuple[np.ndarray, np.ndarray]]
"""(weight [out, in], bias [out]) of each layer, float64, with a ReLU between each two."""


# ---- the program


def scores(layers: Layers, x: np.ndarray) -> np.ndarray:
    """Return the scores [n, k] of x [n, d] in float64."""
    for w, b in layers[:-1]:
        x = np.maximum(x @ w.T + b, 0)
    w, b = layers[-1]
    return x @ w.T + b


def interval(layers: Layers, low: np.ndarray, high: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return bounds (low, high) on each hidden layer's values before the ReLU for inputs in [low, high]."""
    out = []
    for w, b in layers[:-1]:
        up, down = np.maximum(w, 0), np.minimum(w, 0)
        low, high = up @ low + down @ high + b, up @ high + down @ low + b
        out.append((low, high))
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    return out


class Program:
    """min r over z in the box with |z - x| <= r <= `most` and rival's score >= own's: rows, bounds and binaries."""

    def __init__(self, layers: Layers, x: np.ndarray, own: int, rival: int, most: float) -> None:
        self.d = d = len(x)
        self.cells: list[tuple[int, int, float]] = []
        self.limits: list[float] = []
        self.r = d  # variables: z [d], r, then per hidden layer its values and its binaries
        self.low = [*np.maximum(x - most, 0), 0.0]
        self.high = [*np.minimum(x + most, 1), most]
        for i in range(d):
            self.at_most({i: 1, self.r: -1}, x[i])
            self.at_most({i: -1, self.r: -1}, -x[i])
        self.binaries: list[int] = []
        before = list(range(d))
        ranges = interval(layers, np.array(self.low[:d]), np.array(self.high[:d]))
        for (w, b), (lo, hi) in zip(layers[:-1], ranges, strict=True):
            at = len(self.low)
            units = list(range(at, at + len(b)))
            self.low += [0.0] * len(b)
            self.high += list(np.maximum(hi, 0))
            for j, unit in enumerate(units):
                inputs = dict(zip(before, w[j], strict=True))
                if hi[j] <= 0:
                    continue  # its value's range is [0, 0]
                self.at_most({**inputs, unit: -1}, -b[j])  # h >= w z + b
                over = {v: -c for v, c in inputs.items()}
                if lo[j] >= 0:
                    self.at_most({**over, unit: 1}, b[j])
                    continue
                on = len(self.low)
                self.low.append(0.0)
                self.high.append(1.0)
                self.binaries.append(on)
                self.at_most({**over, unit: 1, on: -lo[j]}, b[j] - lo[j])  # h <= w z + b where on
                self.at_most({unit: 1, on: -hi[j]}, 0.0)  # h <= 0 where off
            before = units
        w, b = layers[-1]
        self.at_most(dict(zip(before, w[own] - w[rival], strict=True)), b[rival] - b[own])

    def at_most(self, row: dict[int, float], limit: float) -> None:
        self.cells += [(len(self.limits), v, c) for v, c in row.items()]
        self.limits.append(limit)

    def solve(self, fixed: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray] | None:
        """Return (radius, point [d], binaries); None where nothing is feasible. `fixed` fixes the binaries."""
        rows, columns, values = zip(*self.cells, strict=True)
        n = len(self.low)
        low, high, whole, cost = np.array(self.low), np.array(self.high), np.zeros(n), np.zeros(n)
        cost[self.r] = 1
        if fixed is None:
            whole[self.binaries] = 1
        else:
            low[self.binaries] = high[self.binaries] = fixed
        found = milp(
            cost,
            integrality=whole,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(
                coo_array((values, (rows, columns)), shape=(len(self.limits), n)).tocsr(), -np.inf, self.limits
            ),
            options={"mip_rel_gap": 1e-6},
        )
        if found.status == 2:  # infeasible
            return None
        assert found.success, found.message
        return float(found.fun), found.x[: self.d], found.x[self.binaries].round()


def radius(layers: Layers, x: np.ndarray, own: int) -> tuple[float, np.ndarray]:
    """Return the smallest Linf change of x [d] in [0, 1] that lifts another class to the label's score, and its point.

    Infinity and x itself where no point of the box does.
    """
    best, where = np.inf, x
    for rival in range(len(layers[-1][1])):
        if rival == own:
            continue
        for stage in STAGES:
            most = min(stage, best)
            program = Program(layers, x, own, rival, most)
            found = program.solve()
            if found is not None:
                exact = program.solve(found[2]) or found  # the same units active, no integrality tolerance
                if exact[0] < best:
                    best, where = exact[0], exact[1]
            if found is not None or most == best:
                break
    return best, where


# ---- the cases


def _trained(sizes: tuple[int, ...], x: Tensor, y: Tensor, steps: int, seed: int) -> Layers:
    """Return layers trained on x [n, d], y [n]; with random weights the regions would be slivers."""
    g = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        modules += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*modules[:-1])
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (2 / p.shape[-1]) ** 0.5 * (p.dim() > 1))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=g)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.85
    numbers = [np.round(p.detach().double().numpy() * GRID) / GRID for p in net.parameters()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _made_up(seed: int) -> tuple[Layers, np.ndarray]:
    """A 16-16-12-3 network on a made-up task; a third of the points have values at the walls of the box."""
    g = torch.Generator().manual_seed(seed)
    x, teacher = torch.rand(2000, 16, generator=g), torch.randn(16, 3, generator=g)
    y = ((x - 0.5) @ teacher + 0.8 * torch.sin(6 * x[:, :3])).argmax(1)
    points = np.random.default_rng(seed).random((120, 16))
    points[::3] = (points[::3] * 1.6 - 0.3).clip(0, 1)
    return _trained((16, 16, 12, 3), x, y, 500, seed), np.round(points * 255) / 255


def _digits(seed: int) -> tuple[Layers, np.ndarray]:
    """A 64-16-10 network on real handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    return _trained((64, 16, 10), x[:1500], y[:1500], 400, seed), data.data[1500:1560] / 16


MAKE = {"made-up 16-16-12-3": _made_up, "digits 64-16-10": _digits}


@dataclass(frozen=True)
class Solved:
    """A network with points x [n, d], labels y [n], exact radii [n] and the nearest ties z [n, d], all float64."""

    layers: Layers
    x: np.ndarray
    y: np.ndarray
    radii: np.ndarray
    z: np.ndarray

    def module(self) -> nn.Sequential:
        """Return the network as a float32 module that takes [n, ...] with d values each."""
        parts: list[nn.Module] = [nn.Flatten()]
        for w, b in self.layers:
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": torch.from_numpy(w), "bias": torch.from_numpy(b)})
            parts += [layer, nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    def at(self, radius: float, most: float = np.inf) -> tuple[Tensor, Tensor]:
        """Return float32 points [m, d] whose exact radius is `radius`, and labels [m], of those in [radius, most).

        Each x moves towards its nearest tie z: of what is left no tie can be nearer than r - |moved| (the triangle
        inequality), and z is exactly there.
        """
        rows = (self.radii >= radius) & (self.radii < most)
        share = 1 - radius / self.radii[rows, None]
        moved = self.x[rows] + share * (self.z[rows] - self.x[rows])
        return torch.from_numpy(moved).float(), torch.from_numpy(self.y[rows])


@functools.cache
def solved() -> dict[str, Solved]:
    """Return what tests/data/milp.json holds."""
    out = {}
    for name, kept in json.loads(FILE.read_text()).items():
        numbers = [(np.array(w) / GRID, np.array(b) / GRID) for w, b in kept["layers"]]
        x = np.array(kept["x"]) / kept["levels"]
        y = scores(numbers, x).argmax(1)
        out[name] = Solved(numbers, x, y, np.array(kept["radii"]), np.array(kept["nearest"]))
    return out


def main() -> None:
    """Train, solve and write all cases."""
    torch.set_num_threads(1)
    out = {}
    for seed, (name, make) in enumerate(MAKE.items()):
        layers, x = make(seed)
        levels = 16 if name.startswith("digits") else 255
        answers = [radius(layers, row, int(scores(layers, row[None]).argmax())) for row in x]
        out[name] = {
            "seed": seed,
            "layers": [[np.round(w * GRID).astype(int).tolist(), np.round(b * GRID).astype(int).tolist()]
                       for w, b in layers],
            "levels": levels,
            "x": np.round(x * levels).astype(int).tolist(),
            "radii": [round(r, 9) for r, _ in answers],
            "nearest": [[round(float(v), 9) for v in z] for _, z in answers],
        }  # fmt: skip
    FILE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in out.items()) + "\n}\n")


if __name__ == "__main__":
    main()
