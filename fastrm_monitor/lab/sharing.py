"""Work shared by several processes that `accelerate launch` or `torchrun` started: what they need of each other.

In a single process everything here does nothing and imports no torch. The proxy is small and trained on the CPU, so the
processes talk through gloo on machines with and without GPUs; the model that is explained lies on each process's own.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long a process waits for the others; a launcher ends them all as soon as one has failed."""


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def world() -> int:
    """Number of processes; 1 unless a launcher started this one as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def mine(parts: Iterable[T]) -> Iterator[T]:
    """Every W-th of the parts, from that of this process's number on."""
    return islice(parts, rank(), None, world())


def join() -> None:
    """Meet the other processes, and take a GPU of one's own where there are any. May be called again."""
    if world() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    atexit.register(torch.distributed.destroy_process_group)


def total(number: int) -> int:
    """The sum of all processes' numbers, when every process has come here."""
    if world() == 1:
        return number
    import torch

    join()
    shared = torch.tensor(number)
    torch.distributed.all_reduce(shared)
    return int(shared)


def from_main(make: Callable[[], float]) -> float:
    """A number that the main process makes and all have: what is decided by it is decided alike everywhere."""
    if world() == 1:
        return make()
    import torch

    join()
    number = torch.tensor(make() if is_main() else 0.0, dtype=torch.float64)
    torch.distributed.broadcast(number, 0)
    return float(number)


def average_gradients(module: nn.Module, weight: float = 1.0) -> None:
    """Give every process the mean of all processes' gradients.

    A parameter without a gradient in some process counts as zero there; without one in all it stays without.

    Args:
        module: the same in every process.
        weight: of this process's gradients, e.g. the questions that they come from; not 0 in all.
    """
    if world() == 1:
        return
    import torch

    join()
    learning = [one for one in module.parameters() if one.requires_grad]
    known = torch.tensor([float(one.grad is not None) for one in learning])
    parts = [torch.zeros(one.numel()) if one.grad is None else one.grad.flatten().float() * weight for one in learning]
    # One message for all: the weights' sum and who has a gradient travel with the gradients.
    shared = torch.cat([*parts, known, torch.tensor([weight])])
    torch.distributed.all_reduce(shared)
    sizes = [one.numel() for one in learning]
    *means, holders, total = shared.split([*sizes, len(learning), 1])
    for parameter, mean, held in zip(learning, means, holders.tolist(), strict=True):
        parameter.grad = (mean / total).view_as(parameter).to(parameter.dtype) if held else None
