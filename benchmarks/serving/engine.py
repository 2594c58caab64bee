"""The child: one engine in a process of its own."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.serving.clocks import clocks
from benchmarks.serving.traffic import EXTRACTED, HOOKED, WATCHED, Facts, Load, Round, Setup

WARM = 32
"""Requests before the first round of a load."""


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
