"""The decode step in a CUDA graph."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import (
    LlavaForConditionalGeneration,
    StaticCache,
)

from benchmarks.decode.load import Load
from benchmarks.decode.printing import yes
from benchmarks.decode.rounds import Rounds, side_by_side, taken
from benchmarks.report import Report


class Graphed:
    """Stands in for `model.forward`: passes of one token replay a CUDA graph, all others run as they are.

    The hooks on the model run around `forward` and so outside the graph. The hook on the final norm lies inside, where
    it returns before it touches a tensor, since the prompt is measured already.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._eager = model.forward
        self.graph: Any = None
        self.output: Any = None
        self._inputs: dict[str, Tensor] = {}

    def __call__(self, **kwargs: Any) -> Any:
        """As the model's forward."""
        ids = kwargs.get("input_ids")
        if ids is None or ids.shape[1] != 1:
            return self._eager(**kwargs)
        tensors = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        if self.graph is None:
            self._inputs = {name: value.clone() for name, value in tensors.items()}
            self._capture({**kwargs, **self._inputs})
        for name, value in tensors.items():
            self._inputs[name].copy_(value)
        self.graph.replay()
        return self.output

    def _capture(self, kwargs: dict[str, Any]) -> None:
        layers = kwargs["past_key_values"].layers
        lengths = [layer.cumulative_length.clone() for layer in layers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries set themselves up; what this writes lies behind the restored length
                self._eager(**kwargs)
        torch.cuda.current_stream().wait_stream(stream)
        for layer, length in zip(layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self._eager(**kwargs)

    def kernels(self) -> Counter[str]:
        """What one replay runs on the GPU, by name."""
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            self.graph.replay()
            torch.cuda.synchronize()
        return Counter(event.name for event in seen.events() if event.device_type == DeviceType.CUDA)


@contextmanager
def graphed(model: LlavaForConditionalGeneration) -> Iterator[Graphed]:
    """The model with its one-token passes in a CUDA graph of their own."""
    stand = Graphed(model)

    @functools.wraps(model.forward)
    def forward(**kwargs: Any) -> Any:
        return stand(**kwargs)

    model.forward = forward
    try:
        yield stand
    finally:
        del model.forward
        stand.graph = stand.output = None


def in_graphs(
    model: LlavaForConditionalGeneration, watch: Callable[[], Any], load: Load, rounds: int, report: Report
) -> Rounds:
    """Capture the step without a handle and again inside a watched call; compare; then time the second one."""
    room = load.inputs["input_ids"].shape[1] + load.tokens + 8
    load = Load(load.inputs, load.tokens, StaticCache(config=model.config, max_cache_len=room))
    load.run(model.generate, tokens=2)  # the cache gets its buffers
    with graphed(model) as bare:
        answers = load.fresh().run(model.generate)
        logits = bare.output.logits.clone()
        kernels = bare.kernels()
    handle = watch()
    try:
        with graphed(model) as watched:
            own = load.fresh().run(model.generate)
            taken(handle, load.batch)
            same = torch.equal(own, answers) and torch.equal(watched.output.logits, logits)
            others = watched.kernels()
            count, other = sum(kernels.values()), sum(others.values())
            report.line(
                f"Batch {load.batch}: captured without a handle {count} kernels and copies, captured in a watched call "
                f"{other}; the same ones: {yes(kernels == others) if count else 'the profiler saw none'}; "
                f"tokens and last logits bit for bit the same: {yes(same)}."
            )
            return side_by_side(handle, load, rounds, "step in a CUDA graph")
    finally:
        handle.remove()
