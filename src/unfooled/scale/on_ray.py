"""Hardening by several workers of Ray, here or on a cluster, a CPU core or a GPU each: one folder, one result."""

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfooled import attacks, harden
from unfooled.core import record
from unfooled.core.together import together
from unfooled.errors import InputError, MissingExtra, UnfooledError

from .workers import told

_STORE = 10**8  # bytes of Ray's object store: what is large goes through files
_RESTARTS = 3  # of all workers, from the last checkpoint, when one of them dies


def fit_on_ray(
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
    """Train `module` in place as `harden.fit` does, by `workers` processes of Ray, on a GPU each where there are some.

    Takes what `harden.fit` takes. The folder `out` is the one that a single process writes, and either may go on with
    what the other began; a worker that dies is replaced, and all go on from the last checkpoint. The result is a single
    process's up to the order of sums, but for what looks at a batch as a whole or draws luck of its own: BatchNorm and
    free training see a worker's share, dropout draws anew in each. `on_line` is called here as epochs end, `on_step` is
    not called.

    Raises:
        InputError: what `harden.fit` raises, or no worker.
        MissingExtra: Ray is not installed.
        UnfooledError: the workers failed.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}.")
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(_ray(workers))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unfooled-")))
        folder = scratch / "training" if out is None else Path(out).resolve()
        if out is not None and not resume:
            record.check_free(folder)
        cuda = next(module.parameters()).device.type == "cuda" if device is None else "cuda" in str(device)
        job = scratch / "job.bin"
        _by_value(ray, module)
        job.write_bytes(ray.cloudpickle.dumps((module.cpu(), data, objective, how)))
        with told(folder, on_line):
            _run(ray, functools.partial(_work, str(job), str(folder), cuda=cuda, resume=resume), workers, cuda, scratch)
        if device is not None or cuda:
            module.to(device or "cuda")
        return harden.fit(module, data, objective, out=folder, resume=True, device=device, **how)


def _work(job: str, folder: str, *, cuda: bool, resume: bool) -> None:
    """Train as one of several workers, from the last checkpoint where there is one."""
    from ray import cloudpickle
    from ray.train.torch import get_device

    assert attacks.RECIPES  # a worker knows the attacks that the judge is named by
    module, data, objective, how = cloudpickle.loads(Path(job).read_bytes())
    begun = (Path(folder) / "training.json").exists()
    harden.fit(
        module, data, objective, out=folder, resume=resume or begun, device=get_device() if cuda else "cpu",
        together=together(), **how,
    )  # fmt: skip


def _run(ray: Any, work: Callable[[], None], workers: int, cuda: bool, scratch: Path) -> None:  # noqa: FBT001
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        lambda: work(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda),
        run_config=RunConfig(storage_path=str(scratch), failure_config=FailureConfig(max_failures=_RESTARTS)),
    )
    try:
        trainer.fit()
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UnfooledError):
                raise cause from error
        raise UnfooledError(f"The workers failed: {(str(error).strip().splitlines() or ['?'])[-1]}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield what a failure of the workers was about: each worker's error, then the errors behind this one."""
    while error is not None:
        yield from getattr(error, "worker_failures", {}).values()
        yield error
        error = error.__cause__ or getattr(error, "cause", None)


def _by_value(ray: Any, module: nn.Module) -> None:
    """See to it that classes of files that no other process can import travel whole."""
    for name in {type(m).__module__ for m in module.modules()}:
        loaded = sys.modules.get(name)
        with contextlib.suppress(ValueError):  # a spec of None
            if loaded is not None and importlib.util.find_spec(name.partition(".")[0]) is not None:
                continue
        ray.cloudpickle.register_pickle_by_value(loaded)


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Yield the module ray, connected to the caller's cluster, or to one of its own that asks nobody outside."""
    with tempfile.TemporaryDirectory(prefix="unfooled-ray-") as home:
        (Path(home) / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        quiet = {
            "HOME": home, "RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
            "RAY_TRAIN_V2_ENABLED": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }  # fmt: skip
        before = {name: os.environ.get(name) for name in quiet}
        os.environ.update(quiet)
        try:
            try:
                import ray
                import ray.train.torch
            except ImportError:
                raise MissingExtra("Several workers need Ray: pip install 'unfooled[distributed]'.") from None
            if ray.is_initialized():
                yield ray
                return
            ray.init(
                num_cpus=workers, object_store_memory=_STORE, include_dashboard=False, log_to_driver=False,
                logging_level="ERROR",
            )  # fmt: skip
            try:
                yield ray
            finally:
                ray.shutdown()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
