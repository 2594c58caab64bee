"""Who waits for the device."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.decode.load import Generate, Load, wait
from benchmarks.report import Report

SYNCHRONISING = (
    "aten::item",
    "aten::_local_scalar_dense",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "Memcpy DtoH",
)


def counts(load: Load, generate: Generate, tokens: int) -> Counter[str]:
    """What the profiler sees of `SYNCHRONISING` in one call."""
    device = load.inputs["input_ids"].device
    on_gpu = device.type == "cuda"
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        load.run(generate, tokens=tokens)
        wait(device)
    found: Counter[str] = Counter()
    for event in seen.events():
        for name in SYNCHRONISING:
            if event.name == name or (name == "Memcpy DtoH" and event.name.startswith(name)):
                found[name] += 1
    return found


class Waiting(TorchDispatchMode):
    """Notes the lines of the package whose operations wait for a GPU; on a CPU, those that would."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation."""
        if _waits(func._schema.name, args, kwargs or {}):
            frame, package = sys._getframe(), ""
            while frame.f_back is not None and package not in ("fastrm_monitor", "transformers"):
                frame = frame.f_back
                package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if package == "fastrm_monitor":  # else the model itself waits
                module = frame.f_globals["__name__"].removeprefix("fastrm_monitor.")
                self.lines[f"{module}, line {frame.f_lineno}, {frame.f_code.co_name}"] += 1
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    first = args[0] if args else None
    if not isinstance(first, Tensor) or (torch.cuda.is_available() and not first.is_cuda and name != "aten::copy_"):
        return False
    if name == "aten::copy_":
        return first.device.type == "cpu" and isinstance(args[1], Tensor) and args[1].is_cuda
    if name == "aten::_to_copy":
        target = kwargs.get("device")
        return target is not None and target.type == "cpu" and first.is_cuda
    if name == "aten::index":  # by a mask: how much there is must be known
        return any(one is not None and one.dtype == torch.bool for one in args[1])
    return name in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")


def per_step(count: Callable[[int], Counter[str]], short: int = 4, long: int = 12) -> dict[str, tuple[float, float]]:
    """Events of each decode step, and of a call apart from its steps, from calls of two lengths."""
    count(short)  # warms up
    few, many = count(short), count(long)
    result = {}
    for name in sorted(few | many):
        step = (many[name] - few[name]) / (long - short)
        result[name] = (step, few[name] - step * (short - 1))
    return result


def who_waits(handle: Any, load: Load, report: Report) -> float | None:
    """Print what synchronises alone and watched.

    Returns:
        What watching adds to a step, all kinds together; None when the profiler sees nothing of the GPU.
    """
    watched_generate = handle._model.generate

    def profiled(generate: Generate) -> dict[str, tuple[float, float]]:
        def once(tokens: int) -> Counter[str]:
            handle.flush()
            return counts(load, generate, tokens)

        return per_step(once)

    def noted(tokens: int) -> Counter[str]:
        with Waiting() as seen:
            load.run(watched_generate, tokens=tokens)
        return seen.lines

    alone, watched = profiled(handle._generate), profiled(watched_generate)
    on_gpu = load.inputs["input_ids"].is_cuda
    rows, added = [], 0.0
    for name in SYNCHRONISING if on_gpu else SYNCHRONISING[:2]:
        bare, own = alone.get(name, (0.0, 0.0)), watched.get(name, (0.0, 0.0))
        added += abs(own[0] - bare[0])
        rows.append([name, *(f"{value:g}" for value in (bare[0], own[0], own[0] - bare[0], bare[1], own[1]))])
    heads = ("event", "a step, alone", "watched", "added a step", "rest of a call, alone", "watched")
    report.table(f"Synchronisation counted by the profiler, batch {load.batch}", heads, rows)
    rows = [[line, f"{step:g}", f"{rest:g}"] for line, (step, rest) in per_step(noted).items()]
    report.table(
        f"Lines of the package that wait{'' if on_gpu else ' or would on a GPU'}, batch {load.batch}",
        ("line", "times a step", "times in the rest of a call"),
        rows,
    )
    if not on_gpu:
        report.line(
            "On a CPU only aten::item and aten::_local_scalar_dense can be counted, since there are no copies to the "
            "host; and the second table also has lines that read what a GPU would have handed over already."
        )
    handle.pop()
    # generate itself reads a flag of each step, so that a profiler that sees the GPU sees that.
    blind = on_gpu and not any(alone.get(name, (0.0, 0.0))[0] for name in SYNCHRONISING[2:])
    return None if blind else added
