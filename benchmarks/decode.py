"""What monitoring adds to a decode step of LLaVA-1.5-7B, side by side in one run.

    python benchmarks/decode.py                     # on a GPU the 7B shape in bf16, without one a small shape
    python benchmarks/decode.py --quick             # to see that it runs
    python benchmarks/decode.py --output FILE.md    # keeps what it prints as markdown

The configuration is the real one and the weights are random: time and memory do not depend on their values, and nothing
is downloaded. Each round makes the same answers alone, alone again and watched, in random order; the ratio within a
round is what counts, since the machine's speed drifts, and "again" shows how far from 1 the noise alone gets. A short
call of the same kind goes before each timed one, so that the background thread's work on the answers of one watched
call falls into the next watched call and not into one that is alone.

One handle serves all rounds of a batch size: outside a watched call its hooks stay in place and return at once.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from report import Report
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fastrm_monitor import instrument
from fastrm_monitor.scoring.checkpoint import norm_facts, save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

ALONE, AGAIN, WATCHED = "alone", "again", "watched"
GOAL_TIME, GOAL_MEMORY = 0.01, 0.002
SAMPLE_RATE = 0.2
"""Share of the answers that are stored with their picture: about what the embedded model's proxy flags."""
WORDS_BEFORE, WORDS_BEHIND = 4, 19
"""Tokens of the prompt on both sides of the picture's, the first one apart."""

Generate = Callable[..., Tensor]


# --- the model --------------------------------------------------------------------------------------------------------


def shape_7b() -> LlavaConfig:
    """LLaVA-1.5-7B: Vicuna-7B, CLIP ViT-L/14 at 336 pixels, 576 image tokens."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
            vocab_size=32000,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=32001,
            tie_word_embeddings=False,
        ),
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def shape_small() -> LlavaConfig:
    """The same family in small, for a CPU: 64 image tokens."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2001,
            tie_word_embeddings=False,
        ),
        image_token_index=2000,
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build(config: LlavaConfig, device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A model with random weights, made where it stays and in its own precision: no larger copy exists at any time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    found = {(one.dtype, one.device.type) for one in model.parameters()}
    if found != {(dtype, device.type)}:
        raise SystemExit(f"The weights should be {dtype} on {device.type} and are {found}.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(config.text_config, name))
    return model


class Words:
    """Stands in for the tokenizer: a word for each token."""

    def decode(self, tokens: Sequence[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """The words of the tokens, those of the special tokens left out on request."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return " ".join(f"w{number}" for number in numbers if not skip_special_tokens or number > 2)


def stand_in(config: LlavaConfig) -> SimpleNamespace:
    """What `instrument` reads of a processor; the numbers are those of LLaVA-1.5's."""
    side = config.vision_config.image_size
    return SimpleNamespace(
        tokenizer=Words(),
        image_processor=SimpleNamespace(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            do_center_crop=True,
            do_normalize=True,
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        ),
        num_additional_image_tokens=1,
    )


def save_random_proxy(folder: Path, model: LlavaForConditionalGeneration) -> None:
    """A query-row proxy with d_k = 256, a calibrated confidence and a P(IK) probe, all random."""
    text = model.config.text_config
    norm = model.model.language_model.norm
    names = ("map_entropy", "token_probability", "token_entropy", "p_ik")
    probe = torch.randn(text.hidden_size, generator=torch.Generator().manual_seed(1)) / text.hidden_size**0.5
    save_proxy(
        folder,
        build_proxy(ProxyConfig(text.hidden_size, key_size=256, projection_size=256, grounding=True, evidence=True)),
        norm.weight,
        LogisticConfidence(
            features=names,
            mean=(0.0,) * len(names),
            scale=(1.0,) * len(names),
            weights=(-0.5, 0.5, -0.5, 0.5),
            intercept=0.0,
            threshold=0.0,  # the sample alone decides what is stored
            probe=tuple(probe.tolist()),
        ),
        model_id="random weights",
        model_type=model.config.model_type,
        norm=norm_facts(norm),
        image_token_id=model.config.image_token_index,
    )


def prompts(model: LlavaForConditionalGeneration, batch: int) -> dict[str, Tensor]:
    """One picture and one question a row, as the processor would give them."""
    config = model.config
    dice = torch.Generator().manual_seed(batch)
    words = torch.randint(3, config.image_token_index, (batch, WORDS_BEFORE + WORDS_BEHIND), generator=dice)
    begin = torch.full((batch, 1), config.text_config.bos_token_id)
    picture = torch.full((batch, config.image_seq_length), config.image_token_index)
    ids = torch.cat([begin, words[:, :WORDS_BEFORE], picture, words[:, WORDS_BEFORE:]], dim=1).to(model.device)
    side = config.vision_config.image_size
    pixels = torch.randn(batch, 3, side, side, generator=dice).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


# --- one call ---------------------------------------------------------------------------------------------------------


class Clock(StoppingCriteria):
    """Stops nothing; marks when the first and the last token are chosen, on a GPU by events, which wait for nothing."""

    def __init__(self, device: torch.device, batch: int, tokens: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._never = torch.zeros(batch, dtype=torch.bool, device=device)
        self._tokens, self._seen = tokens, 0
        self.marks = [self._mark()]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token."""
        self._seen += 1
        if self._seen in (1, self._tokens):
            self.marks.append(self._mark())
        return self._never

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> tuple[float, float]:
        """To the first token, and of each step behind it; the device has nothing left to do."""
        if len(self.marks) != 3:
            raise SystemExit(f"generate made {self._seen} tokens in place of {self._tokens}.")
        start, first, last = self.marks
        spans = [a.elapsed_time(b) if self._on_gpu else 1000 * (b - a) for a, b in ((start, first), (first, last))]
        return spans[0], spans[1] / (self._tokens - 1)


@dataclass(frozen=True)
class Load:
    """What is generated.

    Attributes:
        inputs: of the prompts.
        tokens: of each answer.
        cache: a static KV cache; None for the one that `generate` makes.
    """

    inputs: dict[str, Tensor]
    tokens: int
    cache: StaticCache | None = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.inputs["input_ids"])

    def fresh(self) -> Load:
        """Itself, with an empty cache."""
        if self.cache is not None:
            self.cache.reset()
        return self

    def run(self, generate: Generate, tokens: int | None = None, clock: Clock | None = None) -> Tensor:
        """One call of `generate`; the end token is forbidden, so that every answer has its length."""
        more: dict[str, Any] = {}
        if self.cache is not None:
            more = {"past_key_values": self.cache, "disable_compile": True}
        if clock is not None:
            more["stopping_criteria"] = StoppingCriteriaList([clock])
        count = tokens or self.tokens
        return generate(**self.inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, **more)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- side by side -----------------------------------------------------------------------------------------------------


@dataclass
class Rounds:
    """What the rounds of one batch size took; milliseconds by variant, a row for each round.

    Attributes:
        mode: how a step ran.
        batch: B.
        times: (rounds, 3) of each variant: first token, step, whole call.
        same: whether watched answers were those made alone.
        claimed: `scoring_seconds` of the watched answers, in milliseconds.
    """

    mode: str
    batch: int
    times: dict[str, np.ndarray] = field(default_factory=dict)
    same: bool = True
    claimed: list[float] = field(default_factory=list)

    def ratios(self, variant: str, figure: int) -> np.ndarray:
        """Of a variant to alone, round by round."""
        return self.times[variant][:, figure] / self.times[ALONE][:, figure]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and the ends of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(values, (4000, len(values))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def side_by_side(handle: Any, load: Load, rounds: int, mode: str) -> Rounds:
    """The rounds of one batch size."""
    device = load.inputs["input_ids"].device
    now = time.perf_counter if device.type == "cuda" else time.process_time
    dice = random.Random(0)  # noqa: S311 - an order, not a secret
    functions: dict[str, Generate] = {
        ALONE: handle._generate,
        AGAIN: handle._generate,
        WATCHED: handle._model.generate,
    }
    result = Rounds(mode, load.batch)
    times: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in functions}
    for number in range(rounds + 1):
        answers: dict[str, Tensor] = {}
        for variant in dice.sample(list(functions), len(functions)):
            generate = functions[variant]
            handle.flush()
            load.fresh().run(generate, tokens=2)
            load.fresh()
            wait(device)
            began = now()
            clock = Clock(device, load.batch, load.tokens)
            answers[variant] = load.run(generate, clock=clock)
            wait(device)
            whole = 1000 * (now() - began)
            if number:  # the first round warms up
                times[variant].append((*clock.milliseconds(), whole))
        result.claimed += taken(handle, 2 * load.batch)[load.batch :]
        result.same &= torch.equal(answers[WATCHED], answers[ALONE])
    result.times = {variant: np.array(rows) for variant, rows in times.items()}
    return result


def taken(handle: Any, answers: int) -> list[float]:
    """Take the assessments of the watched calls: all scored, by every feature. Their scoring times in milliseconds."""
    assessments = handle.pop()
    reasons = Counter(one.reason or "not calibrated" for one in assessments if not (one.scored and one.calibrated))
    failed = {
        key: count for key, count in handle.monitor.counters.snapshot().items() if key[0] in ("failed", "dropped")
    }
    if len(assessments) != answers or reasons or failed:
        raise SystemExit(f"{len(assessments)} of {answers} answers were seen; not scored: {dict(reasons)}; {failed}.")
    return [1000 * one.scoring_seconds for one in assessments]


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(load: Load, generate: Generate) -> int:
    """Most bytes allocated on the GPU during one call."""
    load.run(generate, tokens=2)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    load.run(generate)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


# --- the step in a CUDA graph -----------------------------------------------------------------------------------------


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


# --- who waits for the device -----------------------------------------------------------------------------------------

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


# --- what is printed --------------------------------------------------------------------------------------------------

FIGURES = ("first token", "decode step", "whole call")


def time_table(report: Report, title: str, results: list[Rounds]) -> None:
    """Times and ratios of all batch sizes of one mode."""
    heads = (
        "batch", "figure", "alone, ms", "watched, ms", "ratio, median", "95 % interval", "alone again", "added, ms",
        "95 % interval", "ms an answer",
    )  # fmt: skip
    rows = []
    for one in results:
        for figure, name in enumerate(FIGURES):
            alone, watched = one.times[ALONE][:, figure], one.times[WATCHED][:, figure]
            ratio, low, high = interval(one.ratios(WATCHED, figure))
            again = np.median(one.ratios(AGAIN, figure))
            added, least, most = interval(watched - alone)
            rows.append(
                [
                    str(one.batch),
                    name,
                    f"{np.median(alone):.2f}",
                    f"{np.median(watched):.2f}",
                    f"{ratio:.4f}",
                    f"{low:.4f} to {high:.4f}",
                    f"{again:.4f}",
                    f"{added:.3f}",
                    f"{least:.3f} to {most:.3f}",
                    f"{added / one.batch:.3f}" if figure == 2 else "",
                ]
            )
    report.table(title, heads, rows)
    for one in results:
        report.line(
            f"Batch {one.batch}, {len(one.times[ALONE])} rounds. Watched answers are those made alone: {yes(one.same)}."
            f" Assessments say that scoring took {np.median(one.claimed):.2f} ms an answer (`scoring_seconds`)."
        )


def time_verdict(results: list[Rounds], on_gpu: bool) -> str:
    """The goal for a decode step, in a line."""
    found = [(one, *interval(one.ratios(WATCHED, 1))) for one in results]
    if all(high <= 1 + GOAL_TIME for *_, high in found):
        answer = "yes"
    elif any(low > 1 + GOAL_TIME for _, _, low, _ in found):
        answer = "no"
    else:
        answer = "not decided, an interval reaches across it"
    if not on_gpu:
        answer = f"not judged without a GPU and the 7B shape (the small shape: {answer})"
    each = "; ".join(
        f"batch {one.batch}: {100 * (median - 1):+.2f} % [{100 * (low - 1):+.2f}, {100 * (high - 1):+.2f}]"
        for one, median, low, high in found
    )
    return f"Goal, at most {100 * GOAL_TIME:g} % of decode time, {results[0].mode}: {answer}. {each}."


def yes(truth: bool) -> str:
    """For a sentence."""
    return "yes" if truth else "no"


def machine(device: torch.device) -> str:
    """Hardware and versions."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        chip = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        chip = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "fastrm-monitor")]
    return f"{chip}; Python {platform.python_version()}, {', '.join(versions)}"


def shape_line(model: LlavaForConditionalGeneration, tokens: int) -> str:
    """The model and the load, in a line."""
    text, vision = model.config.text_config, model.config.vision_config
    weights = sum(one.numel() for one in model.parameters())
    prompt = 1 + WORDS_BEFORE + WORDS_BEHIND + model.config.image_seq_length
    return (
        f"{weights / 1e6:,.0f} million random weights in {str(model.dtype).removeprefix('torch.')}, "
        f"{text.num_hidden_layers} layers, hidden {text.hidden_size}, intermediate {text.intermediate_size}, "
        f"{text.num_attention_heads} heads, vocabulary {text.vocab_size}; tower: {vision.num_hidden_layers} layers, "
        f"hidden {vision.hidden_size}, {vision.image_size} pixels, patch {vision.patch_size}; attention: "
        f"{text._attn_implementation}. Prompts of {prompt} tokens, {model.config.image_seq_length} of them for the "
        f"picture; answers of {tokens} tokens. Proxy: query-row, d_k 256, with confidence and P(IK) probe; "
        f"{100 * SAMPLE_RATE:.0f} % of the answers stored in SQLite with their picture."
    )


# --- the whole run ----------------------------------------------------------------------------------------------------


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, with commas between")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of every answer, at least 2")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each batch size")
    parser.add_argument("--quick", action="store_true", help="few short rounds: to see that it runs, not for numbers")
    parser.add_argument("--output", type=Path, help="markdown file to write")
    chosen = parser.parse_args()
    try:
        chosen.batches = [int(size) for size in chosen.batches.split(",")]
    except ValueError:
        parser.error("--batches takes numbers with commas between, such as 1,8,32")
    if chosen.quick:
        chosen.tokens, chosen.rounds = min(chosen.tokens, 12), min(chosen.rounds, 3)
    if min(chosen.batches) < 1 or chosen.tokens < 2 or chosen.rounds < 1:
        parser.error("batches and rounds start at 1, tokens at 2")
    return chosen


def measure(
    model: LlavaForConditionalGeneration, watch: Callable[[], Any], chosen: argparse.Namespace, report: Report
) -> None:
    """All sections and the verdicts."""
    on_gpu = model.device.type == "cuda"
    eager: list[Rounds] = []
    graphs: list[Rounds] = []
    memory: list[list[str]] = []
    shares: list[float] = []
    for batch in chosen.batches:
        load = Load(prompts(model, batch), chosen.tokens)
        try:
            alone = peak(load, model.generate) if on_gpu else 0
            with watch() as handle:
                if on_gpu:
                    watched = peak(load, model.generate)
                    taken(handle, 2 * batch)
                    shares.append(watched / alone - 1)
                    sizes = [f"{value / 2**20:,.1f}" for value in (alone, watched, watched - alone)]
                    memory.append([str(batch), *sizes, f"{100 * shares[-1]:.3f} %"])
                eager.append(side_by_side(handle, load, chosen.rounds, "eager"))
            if on_gpu:
                graphs.append(in_graphs(model, watch, load, chosen.rounds, report))
        except torch.OutOfMemoryError:
            report.line(f"Batch {batch} does not fit this device's memory; what is missing of it below was left out.")
            torch.cuda.empty_cache()
    time_table(report, "generate(), as it comes", eager)
    if on_gpu:
        time_table(report, "generate(), static cache, the decode step in a CUDA graph and the hooks outside", graphs)
        heads = ("batch", "alone, MiB", "watched, MiB", "added, MiB", "share")
        report.table("Peak memory (torch.cuda.max_memory_allocated)", heads, memory)
    else:
        report.line("CUDA graph of the step: skipped, it needs a GPU.")
        report.line("Peak memory: left out, torch counts it on a GPU only.")
    with watch() as handle:
        load = Load(prompts(model, min(max(chosen.batches), 8)), chosen.tokens)
        added = who_waits(handle, load, report)
    for results in (eager, graphs):
        if results:
            report.line(time_verdict(results, on_gpu))
    if shares:
        met = yes(max(shares) <= GOAL_MEMORY)
        report.line(f"Goal, at most {100 * GOAL_MEMORY:g} % of memory: {met} ({100 * max(shares):.3f} % at most).")
    else:
        report.line(f"Goal, at most {100 * GOAL_MEMORY:g} % of memory: not measured.")
    scope = "" if on_gpu else " (aten::item and aten::_local_scalar_dense, on the CPU)"
    met = "not judged, the profiler saw nothing of the GPU" if added is None else yes(added == 0)
    report.line(f"Goal, no synchronisation added to a decode step: {met}{scope}.")


def main() -> None:
    """Measure and print."""
    chosen = arguments_of()
    report = Report(150, "# What monitoring adds to a decode step")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    report.line(
        f"Command: `python {shlex.join([Path('benchmarks', Path(sys.argv[0]).name).as_posix(), *sys.argv[1:]])}`"
    )
    report.line(machine(device))
    if not on_gpu:
        report.line(
            "No GPU here: a small shape on the CPU in float32, which shows that the script runs. Its ratios say "
            "nothing of LLaVA-1.5-7B on a GPU, for which the goals are. Times are processor time of the whole process, "
            "one thread of it for the model, so that other jobs on the machine weigh little."
        )
        torch.set_num_threads(1)
        model = build(shape_small(), device, torch.float32)
    else:
        model = build(shape_7b(), device, torch.bfloat16)
    report.line(shape_line(model, chosen.tokens))
    with tempfile.TemporaryDirectory() as folder:
        proxy, store = Path(folder) / "proxy", f"sqlite:///{Path(folder) / 'store.db'}"
        save_random_proxy(proxy, model)
        processor = stand_in(model.config)

        def watch() -> Any:
            return instrument(model, processor, proxy=proxy, store=store, sample_rate=SAMPLE_RATE)

        measure(model, watch, chosen, report)
    if chosen.output is not None:
        chosen.output.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
