"""What one map costs: time and peak memory of the forward pass, of both teachers and of proxies, in one run.

Each round runs all of them once in random order, and ratios are taken within rounds, since the machine's speed drifts.
The answer's tokens are left out: the pass is that of the prompt, with its cache, as serving begins. A proxy has the
final states at hand, since that pass computed them. `keys cached` is the case of a picture that was asked about before:
an engine that keeps the projected keys of image tokens only projects the query and matches.

Memory is counted beside the weights: on a GPU what the allocator had given out at most, on a CPU the storages of all
tensors alive at once after any operation; scratch memory inside of a single operation is not seen there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from fastrm_monitor.errors import ModelError
from fastrm_monitor.lab.alive import most_alive
from fastrm_monitor.lab.teacher import Teacher
from fastrm_monitor.scoring.anatomy import anatomy_of
from fastrm_monitor.scoring.proxy import Proxy, QueryRowProxy

FORWARD, PUBLISHED, ROW, CACHED = "forward", "teacher_published", "teacher_row", ", keys cached"
GOALS = {"less_time_than_published": 0.999, "less_time_than_row": 0.99, "extra_memory_of_forward": 0.01}
"""At least so much less time, at most so much more memory; the paper has 0.998 less time than its baseline."""
_SHORT = 0.005
"""Seconds below which a variant runs several times a round."""

Run = Callable[[], Any]


def cost(
    model: Any,
    inputs: Mapping[str, Tensor],
    proxies: Mapping[str, Proxy],
    *,
    repeats: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time and memory of one map (of a batch of maps, when the inputs are a batch).

    Args:
        model: any LLaVA, trained or random; in evaluation mode. Its attention is switched and switched back; its
            weights are frozen.
        inputs: the processor's output for the prompt, on the model's device.
        proxies: by name, on any device; those of another width than the model's are refused.
        repeats: rounds, after one that warms up.
        seed: of the order.
        progress: shows the rounds.

    Returns:
        `device`, `threads`, `attention` of the forward pass, `batch`, `prompt_tokens`, `image_tokens`, `layers`,
        `parameters`, `repeats`; `seconds`, by variant ("forward", "teacher_published", "teacher_row", each proxy's
        name and, where it can, with ", keys cached") `{median, ci95}`; `memory`, by variant the bytes it has alive at
        most, beside `weights`; and by proxy variant, as `{value, ci95}`, `less_time_than_published` and
        `less_time_than_row` (1 - ratio), `time_of_forward` (ratio). `extra_memory_of_forward` is, by proxy, what the
        peak of the pass rises by when the proxy runs behind it, with the proxy's weights, in units of the pass's peak
        with the model's weights (`value`), and without these (`of_working_memory`). `goals`: for each of `GOALS` the
        `goal` and, by variant, whether it is `met`.

    Raises:
        ModelError: the model cannot be explained, or a proxy is not for its width.
    """
    anatomy = anatomy_of(model)
    for name, proxy in proxies.items():
        if proxy.config.hidden_size != anatomy.hidden_size:
            raise ModelError(
                f"The proxy {name} is for states of width {proxy.config.hidden_size}, "
                f"this model's have {anatomy.hidden_size}."
            )
    proxies = {name: proxy.to(model.device).eval().requires_grad_(False) for name, proxy in proxies.items()}
    bar = progress or Progress(disable=True)
    task = bar.add_task("what a map costs", total=repeats + 2)
    with _attention(model) as served:
        trial = _Trial(model, dict(inputs), proxies, served)
        memory = trial.memory()
        bar.advance(task)
        times = trial.times(repeats, seed, lambda: bar.advance(task))
    image = trial.image
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "attention": served,
        "batch": image.shape[0],
        "prompt_tokens": image.shape[1],
        "image_tokens": int(image.sum(1).max()),
        "layers": int(model.config.get_text_config().num_hidden_layers),
        "parameters": sum(one.numel() for one in model.parameters()),
        "repeats": repeats,
        "seconds": {name: _median(own, "median") for name, own in times.items()},
        **memory,
    }
    ours = [name for name in times if name not in (FORWARD, PUBLISHED, ROW)]
    found["less_time_than_published"] = {name: _median(1 - times[name] / times[PUBLISHED]) for name in ours}
    found["less_time_than_row"] = {name: _median(1 - times[name] / times[ROW]) for name in ours}
    found["time_of_forward"] = {name: _median(times[name] / times[FORWARD]) for name in (*ours, PUBLISHED, ROW)}
    found["goals"] = {
        figure: {
            "goal": goal,
            "met": {
                name: bool(one["value"] < goal if figure == "extra_memory_of_forward" else one["value"] >= goal)
                for name, one in found[figure].items()
            },
        }
        for figure, goal in GOALS.items()
    }
    return found


class _Trial:
    """What is run, on one model and one batch."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], proxies: Mapping[str, Proxy], served: str) -> None:
        self._model, self._inputs, self._proxies, self._served = model, inputs, proxies, served
        anatomy = anatomy_of(model)
        self._norm, ids = anatomy.norm, inputs["input_ids"]
        self.image = ids == anatomy.image_token_id
        self._valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(self.image)
        self._teacher = Teacher(model)
        _switch(model, served)
        self._states, _ = self._pass()

    def times(self, repeats: int, seed: int, told: Callable[[], None]) -> dict[str, np.ndarray]:
        """Seconds of each variant in each round, (repeats,)."""
        runs = self._runs()
        often = dict.fromkeys(runs, 1)
        order = np.random.default_rng(seed)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(repeats + 1):
            for name in order.permutation(list(runs)).tolist():
                self._prepare(name)
                self._wait()
                began = time.perf_counter()
                for _ in range(often[name]):
                    runs[name]()
                self._wait()
                took = (time.perf_counter() - began) / often[name]
                if number:
                    times[name].append(took)
                else:  # warms up, and tells the short ones
                    often[name] = max(1, min(100, int(_SHORT / took)))
            told()
        return {name: np.array(own) for name, own in times.items()}

    def memory(self) -> dict[str, Any]:
        """`memory` and `extra_memory_of_forward`, see `cost`."""
        alive = {}
        for name, run in self._runs().items():
            self._prepare(name)
            alive[name] = self._peak(run)
        _switch(self._model, self._served)
        weights = _bytes(self._model)
        extra = {}
        for name, proxy in self._proxies.items():
            behind = self._peak(partial(self._map_of_pass, proxy))
            more = _bytes(proxy) + max(0, behind - alive[FORWARD])
            extra[name] = {
                "bytes": more,
                "value": more / (weights + alive[FORWARD]),
                "of_working_memory": more / alive[FORWARD],
            }
        return {
            "memory": {"weights": weights, "alive": alive},
            "extra_memory_of_forward": extra,
        }

    def _runs(self) -> dict[str, Run]:
        runs: dict[str, Run] = {
            FORWARD: self._pass,
            PUBLISHED: lambda: self._teacher.explain(self._inputs, "rollout"),
            ROW: lambda: self._teacher.explain(self._inputs, "row"),
        }
        for name, proxy in self._proxies.items():
            runs[name] = partial(self._map, proxy, self._states)
            if isinstance(proxy, QueryRowProxy):
                runs[name + CACHED] = self._cached(proxy)
        return runs

    def _prepare(self, name: str) -> None:
        _switch(self._model, "eager" if name in (PUBLISHED, ROW) else self._served)

    @torch.inference_mode()
    def _pass(self) -> tuple[Tensor, Any]:
        """The final states (B, T, d) and the output, whose cache is kept as long as serving keeps it."""
        kept: list[Tensor] = []
        hook = self._norm.register_forward_hook(lambda _module, _args, out: kept.append(out))
        try:
            output = self._model(**self._inputs, use_cache=True, logits_to_keep=1)
        finally:
            hook.remove()
        return kept[0], output

    @torch.inference_mode()
    def _map(self, proxy: Proxy, states: Tensor) -> Tensor:
        return torch.sigmoid(proxy.read(states, self.image, self._valid).relevance)

    def _map_of_pass(self, proxy: Proxy) -> Any:
        states, output = self._pass()
        return self._map(proxy, states), output

    def _cached(self, proxy: QueryRowProxy) -> Run:
        """The map from cached keys; every prompt of a batch has as many image tokens."""
        batch = len(self.image)
        with torch.inference_mode():
            keys = proxy.keys(self._states[self.image].reshape(batch, -1, self._states.shape[-1]))
        there = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)

        @torch.inference_mode()
        def run() -> Tensor:
            return torch.sigmoid(proxy.match(keys, self._states[:, -1], there).relevance)

        return run

    def _peak(self, run: Run) -> int:
        """Most bytes alive during a run beyond those alive before."""
        run()  # what is set up once is not of this run
        self._wait()
        if self._states.is_cuda:
            torch.cuda.reset_peak_memory_stats(self._states.device)
            before = torch.cuda.memory_allocated(self._states.device)
            kept = run()
            self._wait()
            del kept
            return int(torch.cuda.max_memory_allocated(self._states.device) - before)
        return most_alive(run)

    def _wait(self) -> None:
        if self._states.is_cuda:
            torch.cuda.synchronize(self._states.device)


@contextmanager
def _attention(model: Any) -> Iterator[str]:
    """The attention that a forward pass is served with: fused, where the model has it; the model's own afterwards."""
    own = str(model.config._attn_implementation)
    served = own
    if own == "eager":  # the teacher's choice, or that of a model without another
        try:
            model.set_attn_implementation("sdpa")
            served = "sdpa"
        except ValueError:
            pass
    try:
        yield served
    finally:
        _switch(model, own)


def _switch(model: Any, attention: str) -> None:
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)


def _bytes(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


def _median(values: np.ndarray, name: str = "value") -> dict[str, Any]:
    """Median over rounds and its 95 % bootstrap interval."""
    drawn = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    return {name: float(np.median(values)), "ci95": [float(end) for end in np.percentile(drawn, [2.5, 97.5])]}
