"""Small networks that several tests attack."""

import torch
from torch import Tensor, nn


class RowNet(nn.Module):
    """Sums and ReLUs, row by row: the bits of a row do not depend on its batch. It counts the rows that it sees."""

    def __init__(self, inputs: int, classes: int = 4, hidden: int = 12, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(hidden, inputs, generator=g) / inputs**0.5)
        self.b = nn.Parameter(torch.randn(classes, hidden, generator=g))
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        h = ((x.reshape(len(x), 1, -1) - 0.5) * self.a).sum(-1).relu()
        return (h[:, None] * self.b).sum(-1)


class Recurrent(nn.Module):
    """A GRU over sequences [b, t, 3] with four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x * 6)[0][:, -1]) * 5
