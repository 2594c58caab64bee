"""Five requests a picture in a KV cache of a dozen requests' size: blocks are evicted, reused, requests preempted.

Prints one JSON object. The answers are made long, so that running requests push each other out.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from tests.with_vllm.asked import ENGINE, asks, by_transformers, switch_on


def main(runner: str, pictures: str) -> None:
    v2 = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"} if runner == "V2" else {}
    switch_on(**{"VLLM_USE_V2_MODEL_RUNNER": "0", **v2})
    rows = asks(int(pictures), questions=5)
    rows = [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]
    wanted = by_transformers(rows, max_new_tokens=1)
    from vllm import LLM, SamplingParams

    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=32, num_gpu_blocks_override=40)
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    seen: Counter[str] = Counter()
    count(scheduler, "_preempt_request", seen, "preemptions")
    count(scheduler.kv_cache_manager.block_pool, "_maybe_evict_cached_block", seen, "evictions")
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    outputs = llm.generate([row.for_vllm for row in rows], params, use_tqdm=False)
    reasons = Counter(output.fastrm.reason for output in outputs if not output.fastrm.scored)
    apart = [
        float(np.abs(output.fastrm.relevance - one.maps[0]).max())
        for output, one in zip(outputs, wanted, strict=True)
        if output.fastrm.scored
    ]
    counters = llm.llm_engine.fastrm.monitor.counters.snapshot()
    print(
        json.dumps(
            {
                "requests": len(outputs),
                "scored": len(apart),
                "unscored": dict(reasons),
                "largest_difference": max(apart),
                "with_token_numbers": sum("token_probability" in output.fastrm.features for output in outputs),
                "hits": sum(output.num_cached_tokens > 0 for output in outputs),
                "failed": {stage: value for (name, stage), value in counters.items() if name == "failed"},
                **seen,
            }
        )
    )


def count(owner: Any, name: str, seen: Counter[str], label: str) -> None:
    """Count the calls of a method that return something other than False."""
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen[label] += result is not False
        return result

    setattr(owner, name, counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
