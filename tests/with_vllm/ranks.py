"""Two tensor-parallel ranks on the CPU, each a process of its own, and a store. Prints one JSON object."""

from __future__ import annotations

import json

from tests.with_vllm.asked import ENGINE, by_transformers, by_vllm, furthest, mixed, switch_on

if __name__ == "__main__":
    switch_on(VLLM_USE_V2_MODEL_RUNNER="0", VLLM_CPU_OMP_THREADS_BIND="0|1", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    rows = mixed()
    wanted = by_transformers(rows)
    from vllm import LLM, SamplingParams

    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=32, tensor_parallel_size=2)
    greedy = SamplingParams(temperature=0, max_tokens=4)
    rounds = []
    for _ in range(2):
        outputs = llm.generate([row.for_vllm for row in rows], greedy, use_tqdm=False)
        apart = [furthest(by_vllm(output), one) for output, one in zip(outputs, wanted, strict=True)]
        rounds.append(
            {
                "scored": sum(output.fastrm.scored for output in outputs),
                "hits": sum(output.num_cached_tokens > 0 for output in outputs),
                "map": max(one for one, _ in apart),
                "confidence": max(one for _, one in apart),
            }
        )
    monitor = llm.llm_engine.fastrm.monitor
    assert monitor.flush(20)
    counters = {f"{name} {reason}".strip(): value for (name, reason), value in monitor.counters.snapshot().items()}
    print(json.dumps({"rounds": rounds, "cases": monitor._store.totals()["stored", ""], "counters": counters}))
