"""Blocks that a KV connector fills without a forward pass: `python tests/with_vllm/connector.py DecodeBenchConnector`.

That connector of vLLM's own claims to hold every prompt and fills the blocks with made-up values: the answers are
worthless, and no map may come of them. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np

from tests.with_vllm.asked import ENGINE, asks, by_transformers, switch_on


def main(connector: str, folder: str) -> None:
    switch_on(VLLM_USE_V2_MODEL_RUNNER="0")
    rows = asks(12, questions=2)
    wanted = by_transformers(rows, max_new_tokens=1)
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    more = {"shared_storage_path": folder} if connector == "ExampleConnector" else {}
    transfer = KVTransferConfig(kv_connector=connector, kv_role="kv_both", kv_connector_extra_config=more)
    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=8, kv_transfer_config=transfer)
    rounds = []
    for _ in range(2):
        outputs = llm.generate(
            [row.for_vllm for row in rows], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False
        )
        scored = [(output.fastrm, one) for output, one in zip(outputs, wanted, strict=True) if output.fastrm.scored]
        rounds.append(
            {
                "requests": len(outputs),
                "answered": sum(bool(output.outputs[0].token_ids) for output in outputs),
                "scored": len(scored),
                "unscored": dict(Counter(output.fastrm.reason for output in outputs if not output.fastrm.scored)),
                "largest_difference": max(
                    (float(np.abs(got.relevance - one.maps[0]).max()) for got, one in scored), default=0.0
                ),
            }
        )
        llm.reset_prefix_cache()
    print(json.dumps(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
