"""One engine, all cells of the parity table: `python tests/with_vllm/cells.py V1 eager`. Prints one JSON object a cell.

A process of its own for each engine: model runner and interpreter are chosen when vLLM is imported.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.with_vllm.asked import ENGINE, by_transformers, by_vllm, furthest, mixed, switch_on

CHUNK = 48


def main(runner: str, mode: str) -> None:
    v2 = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"} if runner == "V2" else {}
    switch_on(**{"VLLM_USE_V2_MODEL_RUNNER": "0", **v2})
    rows = mixed()
    wanted = by_transformers(rows)
    from vllm import LLM, SamplingParams

    llm = LLM(**ENGINE, enforce_eager=mode == "eager", max_num_seqs=32)
    core: Any = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    kind = type(core.model_executor.driver_worker.worker.model_runner)
    assert ("gpu.model_runner" in kind.__mro__[1].__module__) == (runner == "V2"), kind.__mro__
    pieces = watch_pieces(core.scheduler)
    greedy = SamplingParams(temperature=0, max_tokens=4)
    budget = core.scheduler.max_num_scheduled_tokens
    for chunk in (0, CHUNK):
        core.scheduler.scheduler_config.long_prefill_token_threshold = chunk
        for at_once in (1, 8, 32):
            # A request alone is not held to the threshold, but to the step's budget.
            core.scheduler.max_num_scheduled_tokens = chunk if chunk and at_once == 1 else budget
            llm.reset_prefix_cache()
            for hit in (False, True):
                found, cached = [], []
                pieces.clear()
                for start in range(0, len(rows), at_once):
                    batch = [row.for_vllm for row in rows[start : start + at_once]]
                    outputs = llm.generate(batch, greedy, use_tqdm=False)
                    found += [by_vllm(output) for output in outputs]
                    cached += [output.num_cached_tokens for output in outputs]
                apart = [furthest(one, other) for one, other in zip(found, wanted, strict=True)]
                cell = {
                    "runner": runner,
                    "mode": mode,
                    "prefill": f"{chunk}-token chunks" if chunk else "whole",
                    "prefix": "hit" if hit else "miss",
                    "at_once": at_once,
                    "requests": len(rows),
                    "scored": sum(one.confidence is not None for one in found),
                    "largest_piece": max(pieces),
                    "hits": sum(count > 0 for count in cached),
                    "same_tokens": sum(a.tokens == b.tokens for a, b in zip(found, wanted, strict=True)),
                    "map": max(one for one, _ in apart),
                    "confidence": max(one for _, one in apart),
                }
                print("CELL", json.dumps(cell), flush=True)


def watch_pieces(scheduler: Any) -> list[int]:
    """Tokens that each request gets in each step."""
    pieces: list[int] = []
    original = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        pieces.extend(output.num_scheduled_tokens.values())
        return output

    scheduler.schedule = schedule
    return pieces


if __name__ == "__main__":
    main(*sys.argv[1:])
