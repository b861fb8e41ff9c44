"""Several processes: starting them, sharing what rank 0 knows, agreeing on what to do; all no-ops for one process.

The process group is Ignite's `idist`. What can fail for one process only is done by rank 0 and its outcome,
value or error, is told to all, so that nobody waits for a process that has given up.
"""

import atexit
import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import ignite.distributed as idist
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bundle.errors import BundleError, ExitCode, InterruptedRun, find_bundle_error

Value = TypeVar("Value")


def start(backend: str = "auto", *, timeout_minutes: float = 60.0) -> None:
    """Join the process group that torchrun describes in the environment; nothing where there is one process.

    Args:
        backend: 'nccl', 'gloo', or 'auto': nccl where there is CUDA.
        timeout_minutes: how long a process waits for the others, for instance while rank 0 prepares the data.

    Raises:
        BundleError: for an unknown backend, or for nccl without a GPU for this process.
    """
    if backend not in ("auto", "nccl", "gloo"):
        raise BundleError(f"backend '{backend}' is unknown", hint="use auto, nccl or gloo")
    if not _launched() or idist.get_world_size() > 1:
        return
    chosen = ("nccl" if torch.cuda.is_available() else "gloo") if backend == "auto" else backend
    if chosen == "nccl" and torch.cuda.device_count() <= int(os.environ.get("LOCAL_RANK", "0")):
        raise BundleError(
            f"backend 'nccl': torch finds {torch.cuda.device_count()} GPUs here, fewer than there are processes",
            hint="ask for a node with more, start fewer processes, or use --backend gloo",
        )
    idist.initialize(chosen, timeout=datetime.timedelta(minutes=timeout_minutes))
    if chosen == "gloo":
        # After an error, too: a thread of it that is alive when the interpreter ends can abort the process.
        # Not for NCCL, which at its end may wait for a process that is lost.
        atexit.register(stop)


def stop() -> None:
    """Leave the process group."""
    if idist.get_world_size() > 1:
        idist.finalize()
        gc.collect()  # what is part of a cycle would still hold the group


def require_started() -> None:
    """Refuse to run as one of several processes that know nothing of each other and write into one folder.

    Raises:
        BundleError: names the config to add.
    """
    if _launched() and idist.get_world_size() == 1:
        raise BundleError(
            "several processes were started, but the config is for one",
            hint="add configs/multi_gpu.yaml: --config_file \"['configs/train.yaml','configs/multi_gpu.yaml']\"",
        )


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return idist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return idist.get_world_size()


def device() -> torch.device:
    """The device of this process: one GPU each, or the CPU."""
    return torch.device("cuda", idist.get_local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def wrap(step: nn.Module, *, find_unused: bool = False) -> nn.Module:
    """Return `step` in DDP, or as it is for one process; to be called again whenever what trains changes.

    DDP only synchronises the parameters that trained when it was made; one that is unfrozen later would differ
    between processes without an error.
    """
    if world_size() == 1:
        return step
    gc.collect()  # the wrapper before this one, whose hooks are on the same parameters, is part of a cycle
    wrapped = idist.auto_model(step, find_unused_parameters=find_unused, broadcast_buffers=False)
    return cast(nn.Module, wrapped)


def synchronised_later(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which gradients only add up locally, for all but the last batch of a step."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()


def from_main(action: Callable[[], Value]) -> Value:
    """Do `action` on rank 0 only and return its value, a plain picklable one, on all.

    Raises:
        BundleError: on all, when it failed on rank 0.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [action(), None]
        except Exception as error:
            known = find_bundle_error(error)
            told = (known.message, known.hint, int(known.exit_code)) if known else (str(error), "", ExitCode.DEFECT)
            _broadcast([None, told])
            raise
    outcome = _broadcast(outcome)
    if outcome[1] is not None:
        message, hint, code = outcome[1]
        raise BundleError(message, hint=hint, exit_code=ExitCode(code))
    return cast(Value, outcome[0])


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with lost_process():
        torch.distributed.all_gather_object(values, value)
    return values


def mean(values: list[float]) -> list[float]:
    """The mean over all processes of each value."""
    if world_size() == 1:
        return values
    # On the CPU tensors would do, but NCCL only knows the GPU's.
    total = torch.tensor(values, dtype=torch.float64, device=idist.device())
    with lost_process():
        torch.distributed.all_reduce(total)
    return cast(list[float], (total / world_size()).tolist())


def any_of(flag: bool) -> bool:
    """Whether any process says yes."""
    return mean([float(flag)])[0] > 0


@contextlib.contextmanager
def lost_process() -> Iterator[None]:
    """Turn what torch says when another process is gone into an interruption: the same command goes on.

    Raises:
        InterruptedRun: when a collective operation failed because a process is gone or silent.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world_size() > 1 and any(sign in text for sign in _SIGNS_OF_LOSS):
            raise InterruptedRun("another process of this run was lost") from error
        raise


# Gloo and NCCL have no error type of their own for it.
_SIGNS_OF_LOSS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out waiting",
    "socket timeout",
    "nccl communicator was aborted",
    "remote process exited",
)


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _broadcast(objects: list[Any]) -> list[Any]:
    with lost_process():
        torch.distributed.broadcast_object_list(objects)
    return objects
