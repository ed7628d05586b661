"""Hardening by several processes of this machine: one process group, one recipe, one folder of checkpoints."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from unfooled import harden
from unfooled.core import record
from unfooled.core.together import together
from unfooled.errors import Diverged, InputError, UnfooledError

_LOOK = 0.5  # seconds between looks at how far the workers are


def fit(
    module: nn.Module,
    data: Any,
    objective: Any,
    *,
    workers: int,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    on_line: Callable[[harden.Line], None] | None = None,
    on_step: Callable[[Any], None] | None = None,
    **how: Any,
) -> harden.Hardened:
    """Train `module` in place as `harden.fit` does, by `workers` processes with a CPU core each.

    Takes what `harden.fit` takes. The folder `out` is the one that a single process writes: either may go on with what
    the other began. The result is a single process's up to the order of sums, but for what looks at a batch as a whole
    or draws luck of its own: BatchNorm and free training see a worker's share, dropout draws anew in each. `on_line` is
    called as epochs end, `on_step` is not called.

    Raises:
        InputError: what `harden.fit` raises, no worker, or a module on another device than the CPU: processes with a
            device each are what torchrun starts, where `harden.fit(..., together=together())` does the same.
        UnfooledError: a worker failed.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}.")
    place = torch.device(device) if device is not None else next((p.device for p in module.parameters()), None)
    if place is not None and place.type != "cpu":
        raise InputError(
            f"Several workers train on the CPU, not on {place}: give the device cpu, or start with torchrun."
        )
    with tempfile.TemporaryDirectory(prefix="unfooled-") as scratch:
        folder = Path(scratch) / "training" if out is None else Path(out)
        if not resume:
            record.check_free(folder)

        def work(rank: int) -> None:
            torch.set_num_threads(1)  # a process that was forked cannot use the threads of its parent
            store = torch.distributed.FileStore(f"{scratch}/store", workers)
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=workers)
            try:
                harden.fit(module, data, objective, out=folder, resume=resume, together=together(), **how)
            finally:
                torch.distributed.destroy_process_group()

        with told(folder, on_line):
            try:
                torch.multiprocessing.start_processes(work, nprocs=workers, start_method="fork")
            except ProcessRaisedException as error:
                last = str(error).strip().splitlines()[-1]
                kind, _, said = last.partition(": ")
                known = {f"{each.__module__}.{each.__name__}": each for each in (InputError, Diverged)}
                raise (known[kind](said) if kind in known else UnfooledError(last)) from error
            except ProcessExitedException as error:
                raise UnfooledError(f"A worker died ({error}); go on with --resume.") from error
        return harden.fit(module, data, objective, out=folder, resume=True, **how)


@contextlib.contextmanager
def told(folder: Path, on_line: Callable[[harden.Line], None] | None) -> Iterator[None]:
    """Inside, call `on_line` for every epoch that the workers write down."""
    if on_line is None:
        yield
        return
    tell, ended, said = on_line, threading.Event(), set[int]()

    def look() -> None:
        index = folder / "training.json"
        lines = record.read_json(index).get("lines", []) if index.exists() else []
        for line in (harden.Line(**each) for each in lines):
            if line.epoch not in said:
                said.add(line.epoch)
                tell(line)

    def watch() -> None:
        while not ended.wait(_LOOK):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
