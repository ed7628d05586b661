"""Compositional pattern-producing networks that grow, as tensors: a whole population is mutated and drawn at once.

A CPPN (Stanley 2007, Genetic Programming and Evolvable Machines 8) maps the coordinates of a pixel to its colour
through few nodes of different functions. A population [p] of genomes has one fixed width: `hidden` slots for nodes and
a place in the weight matrix for every connection, with masks for what is there. neat-python evolves the same networks
but evaluates one Python object per genome and pixel, so it is not used.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError

INPUTS = 4
"""x and y in (-1, 1) at pixel centres, the distance to the centre, and 1."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z.clamp(-1, 1),
    "sine": torch.sin,
    "cosine": torch.cos,
    "gaussian": lambda z: 2 * torch.exp(-z.square()) - 1,
    "sigmoid": torch.tanh,
    "absolute": lambda z: 2 * z.abs().clamp(max=1) - 1,
}
"""What a node may compute from the sum of what reaches it; all end in [-1, 1]."""

_ABSENT = 2.0
_AT_ONCE = 2**23  # numbers that all nodes of the genomes drawn together may hold


@dataclass(frozen=True)
class Growth:
    """How often a child differs from its parent: shares of connections, of nodes, and chances per genome.

    A perturbed weight moves by a normal step, one in ten is drawn anew from U[-reach, reach]. The deviation is
    `step` u^2 with u uniform for each child, so that some children search widely and some closely.
    """

    weights: float = 0.5
    functions: float = 0.1
    add_node: float = 0.2
    add_link: float = 0.3
    remove_link: float = 0.1
    step: float = 1.5
    reach: float = 8.0


@dataclass(frozen=True, eq=False)
class Genomes:
    """p networks with sources = 4 inputs + h hidden slots, and sinks = h hidden slots + o outputs.

    Attributes:
        weight: of each connection, float64 [p, 4 + h, h + o].
        linked: whether it is there, bool [p, 4 + h, h + o].
        function: place in `FUNCTIONS` of each sink, int64 [p, h + o].
        place: of each hidden slot between the inputs (0) and the outputs (1), float64 [p, h]; 2 for a free slot.
            Connections lead from lower to higher places only, so there is no circle.
    """

    weight: Tensor
    linked: Tensor
    function: Tensor
    place: Tensor

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.place)

    @property
    def present(self) -> Tensor:
        """Which hidden slots hold a node, bool [p, h]."""
        return self.place < 1

    def packed(self) -> Tensor:
        """Return the genomes as rows of numbers, float64 [p, g]."""
        parts = (self.weight, self.linked, self.function, self.place)
        return torch.cat([part.double().flatten(1) for part in parts], 1)

    def take(self, rows: Tensor) -> "Genomes":
        """Return the networks at `rows`, int64 [m] or a slice's tensor."""
        return Genomes(self.weight[rows], self.linked[rows], self.function[rows], self.place[rows])

    def links(self) -> Tensor:
        """Return which connections could be there, bool [p, 4 + h, h + o]: present nodes, from lower to higher."""
        source, sink = _places(self)
        return (source[:, :, None] < sink[:, None, :]) & (sink[:, None, :] <= 1)


def unpacked(rows: Tensor, hidden: int, outputs: int) -> Genomes:
    """Return the genomes that `Genomes.packed` made rows [p, g] of; raises InputError when the width is another."""
    sources, sinks = INPUTS + hidden, hidden + outputs
    sizes = [sources * sinks, sources * sinks, sinks, hidden]
    if rows.dim() != 2 or rows.shape[1] != sum(sizes):
        raise InputError(
            f"A genome with {hidden} hidden slots and {outputs} outputs has {sum(sizes)} numbers, "
            f"not {tuple(rows.shape[1:])}."
        )
    weight, linked, function, place = rows.double().split(sizes, 1)
    shape = (len(rows), sources, sinks)
    return Genomes(weight.reshape(shape), linked.reshape(shape) > 0, function.long(), place.clone())


def first(n: int, hidden: int, outputs: int, generator: torch.Generator, growth: Growth | None = None) -> Genomes:
    """Return n networks without hidden nodes: every input linked to every output, random weights and functions."""
    device, sinks = generator.device, hidden + outputs
    reach = (growth or Growth()).reach
    linked = torch.zeros(n, INPUTS + hidden, sinks, dtype=torch.bool, device=device)
    linked[:, :INPUTS, hidden:] = True
    weight = torch.where(linked, (2 * _uniform(linked.shape, generator) - 1) * reach, 0.0)
    function = torch.randint(len(FUNCTIONS), (n, sinks), generator=generator, device=device)
    return Genomes(weight, linked, function, torch.full((n, hidden), _ABSENT, dtype=torch.float64, device=device))


def mutated(genomes: Genomes, generator: torch.Generator, growth: Growth | None = None) -> Genomes:
    """Return one child of each genome: weights perturbed, functions changed, links and nodes added or removed."""
    how = growth or Growth()
    children = _reweighted(genomes, generator, how)
    children = _refunctioned(children, generator, how)
    children = _unlinked(children, generator, how)
    children = _linked(children, generator, how)
    return _without_idle(_grown(children, generator, how))


def pictures(genomes: Genomes, height: int, width: int, *, colour: str = "hsv") -> Tensor:
    """Return the pictures that the networks draw, float32 [p, o, height, width] in [0, 1], at any resolution.

    Three outputs are hue, saturation and value (`colour="hsv"`) or the channels themselves ("rgb"); any other number
    of outputs are channels.
    """
    inputs = coordinates(height, width, genomes.weight.device)
    ordered = _ordered(genomes)
    nodes = INPUTS + int(genomes.present.sum(1).amax()) if len(genomes) else INPUTS
    rows = torch.arange(len(genomes), device=genomes.weight.device)
    size = max(1, _AT_ONCE // (nodes * height * width))
    parts = [_drawn(ordered.take(some), inputs, nodes - INPUTS) for some in rows.split(size)]
    made = (torch.cat(parts).unflatten(2, (height, width)) + 1) / 2
    return _rgb(made) if made.shape[1] == 3 and colour == "hsv" else made


def coordinates(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return what the networks are given of each pixel: x, y, distance to the centre and 1, float32 [4, h * w]."""
    y, x = ((2 * torch.arange(n, device=device, dtype=torch.float64) + 1) / n - 1 for n in (height, width))
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return torch.cat([grid, grid.square().sum(0, keepdim=True).sqrt(), torch.ones_like(grid[:1])]).flatten(1).float()


def _drawn(ordered: Genomes, inputs: Tensor, hidden: int) -> Tensor:
    """Return the outputs [p, o, pixels] of networks whose first `hidden` slots are all that hold nodes, in order."""
    known, slots = INPUTS + hidden, ordered.place.shape[1]
    weight = (ordered.weight * ordered.linked).float()
    values = inputs.new_empty(len(ordered), known, inputs.shape[1])
    values[:, :INPUTS] = inputs
    for node in range(hidden):
        before = INPUTS + node
        reached = weight[:, None, :before, node] @ values[:, :before]
        values[:, before] = _applied(reached[:, 0], ordered.function[:, node])
    reached = weight[:, :known, slots:].transpose(1, 2) @ values
    return _applied(reached.flatten(0, 1), ordered.function[:, slots:].flatten()).view_as(reached)


def _applied(reached: Tensor, function: Tensor) -> Tensor:
    """Apply to each row of `reached` [m, pixels] its own function."""
    out = torch.empty_like(reached)
    for code, compute in enumerate(FUNCTIONS.values()):
        rows = (function == code).nonzero()[:, 0]
        out[rows] = compute(reached[rows])
    return out


def _ordered(genomes: Genomes) -> Genomes:
    """Return the same networks with their hidden slots sorted by place: free slots last."""
    hidden = genomes.place.shape[1]
    order = genomes.place.argsort(dim=1, stable=True)
    sources = torch.cat([torch.arange(INPUTS, device=order.device).expand(len(order), -1), INPUTS + order], 1)
    outputs = torch.arange(hidden, genomes.function.shape[1], device=order.device).expand(len(order), -1)
    sinks = torch.cat([order, outputs], 1)

    def arranged(matrix: Tensor) -> Tensor:
        rows = matrix.gather(1, sources[:, :, None].expand_as(matrix))
        return rows.gather(2, sinks[:, None, :].expand_as(matrix))

    return Genomes(
        arranged(genomes.weight),
        arranged(genomes.linked),
        genomes.function.gather(1, sinks),
        genomes.place.gather(1, order),
    )


def _rgb(hsv: Tensor) -> Tensor:
    """Return hue, saturation and value [p, 3, h, w] in [0, 1] as red, green and blue (Smith 1978, hexcone)."""
    hue, saturation, value = hsv.unbind(1)
    near = (torch.tensor([5.0, 3.0, 1.0], device=hsv.device).view(1, 3, 1, 1) + 6 * hue[:, None]) % 6
    less = torch.minimum(near, 4 - near).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * less)


def _reweighted(genomes: Genomes, generator: torch.Generator, how: Growth) -> Genomes:
    shape = genomes.weight.shape
    luck = _uniform(shape, generator)
    hit, anew = luck < how.weights, luck < 0.1 * how.weights
    deviation = how.step * _uniform((len(genomes), 1, 1), generator).square()
    near = genomes.weight + deviation * _normal(shape, generator)
    drawn = (2 * _uniform(shape, generator) - 1) * how.reach
    changed = torch.where(anew, drawn, near.clamp(-how.reach, how.reach))
    return replace(genomes, weight=torch.where(hit & genomes.linked, changed, genomes.weight))


def _refunctioned(genomes: Genomes, generator: torch.Generator, how: Growth) -> Genomes:
    shape = genomes.function.shape
    hit = _uniform(shape, generator) < how.functions
    drawn = torch.randint(len(FUNCTIONS), shape, generator=generator, device=generator.device)
    return replace(genomes, function=torch.where(hit, drawn, genomes.function))


def _unlinked(genomes: Genomes, generator: torch.Generator, how: Growth) -> Genomes:
    chosen = _one_of(genomes.linked, generator, how.remove_link)
    return replace(genomes, linked=genomes.linked & ~chosen)


def _linked(genomes: Genomes, generator: torch.Generator, how: Growth) -> Genomes:
    chosen = _one_of(genomes.links() & ~genomes.linked, generator, how.add_link)
    drawn = (2 * _uniform(chosen.shape, generator) - 1) * how.reach
    return replace(genomes, linked=genomes.linked | chosen, weight=torch.where(chosen, drawn, genomes.weight))


def _grown(genomes: Genomes, generator: torch.Generator, how: Growth) -> Genomes:
    """Put a node into one connection: 1 leads to it, the old weight from it (Stanley and Miikkulainen 2002)."""
    split = _one_of(genomes.linked & ~genomes.present.all(1)[:, None, None], generator, how.add_node)
    share = 0.25 + 0.5 * _uniform((len(genomes),), generator)  # never twice the same place
    drawn = torch.randint(len(FUNCTIONS), (len(genomes),), generator=generator, device=generator.device)
    rows, source, sink = split.nonzero().unbind(1)
    slot = (~genomes.present[rows]).int().argmax(1)
    sources, sinks = _places(genomes)
    below, above = sources[rows, source], sinks[rows, sink]
    weight, linked = genomes.weight.clone(), genomes.linked & ~split
    place, function = genomes.place.clone(), genomes.function.clone()
    place[rows, slot] = below + (above - below) * share[rows]
    function[rows, slot] = drawn[rows]
    linked[rows, source, slot] = linked[rows, INPUTS + slot, sink] = True
    weight[rows, source, slot] = 1.0
    weight[rows, INPUTS + slot, sink] = genomes.weight[rows, source, sink]
    return Genomes(weight, linked, function, place)


def _without_idle(genomes: Genomes) -> Genomes:
    """Free the slots of nodes that lead nowhere."""
    hidden = genomes.place.shape[1]
    idle = genomes.present & ~genomes.linked[:, INPUTS:].any(2)
    linked = genomes.linked.clone()
    linked[:, :, :hidden] &= ~idle[:, None, :]
    return replace(genomes, linked=linked, place=genomes.place.masked_fill(idle, _ABSENT))


def _one_of(possible: Tensor, generator: torch.Generator, chance: float) -> Tensor:
    """Pick with probability `chance` one entry that is possible in each [s, t] of bool [p, s, t]; the others False."""
    flat = possible.flatten(1)
    draw = torch.where(flat, _uniform(flat.shape, generator), -1.0)
    wanted = (_uniform((len(flat),), generator) < chance) & flat.any(1)
    chosen = torch.zeros_like(flat)
    chosen.scatter_(1, draw.argmax(1, keepdim=True), wanted[:, None])
    return chosen.view_as(possible)


def _places(genomes: Genomes) -> tuple[Tensor, Tensor]:
    """Return the places of all sources [p, 4 + h] and of all sinks [p, h + o]; free slots lie beyond the outputs."""
    place, outputs = genomes.place, genomes.function.shape[1] - genomes.place.shape[1]
    return torch.cat([place.new_zeros(len(place), INPUTS), place], 1), torch.cat(
        [place, place.new_ones(len(place), outputs)], 1
    )


def _uniform(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
