"""The answers of an engine without the plug-in: prints the tokens of 500 requests as JSON."""

from __future__ import annotations

import json
import os

from tests.with_vllm.asked import ENGINE, asks, switch_on

if __name__ == "__main__":
    switch_on(VLLM_USE_V2_MODEL_RUNNER="0")
    del os.environ["FASTRM_PROXY"]
    from vllm import LLM, SamplingParams

    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=32)
    assert not hasattr(llm.llm_engine, "fastrm")
    outputs = llm.generate(
        [row.for_vllm for row in asks(125, questions=4)], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False
    )
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
