"""Several processes that train one module, each on its share of every batch: a process's place, and sums over all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unfooled.errors import InputError


@dataclass(frozen=True)
class Together:
    """The place of this process among `size` of them; what one tells the others goes through torch.distributed."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return the consecutive rows of `rows` that are this process's."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put into tensors of one type the sums over all processes: the same bits in each."""
        if self.size == 1 or not tensors:
            return
        whole = torch.cat([t.detach().reshape(-1) for t in tensors])
        torch.distributed.all_reduce(whole)
        for tensor, part in zip(tensors, torch.split(whole, [t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Put into tensors what the first process has there."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), src=0)


ALONE = Together()


def together() -> Together:
    """Return this process's place in the group of torch.distributed; raises InputError where none was initialised."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise InputError(
            "There is no process group: call torch.distributed.init_process_group first, as torchrun asks."
        )
    return Together(torch.distributed.get_rank(), torch.distributed.get_world_size())
