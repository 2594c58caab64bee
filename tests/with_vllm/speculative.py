"""Speculative decoding with drafts looked up in the prompt: several tokens a step. Prints one JSON object."""

from __future__ import annotations

import json

import numpy as np

from tests.with_vllm.asked import ENGINE, asks, by_transformers, switch_on

if __name__ == "__main__":
    switch_on(VLLM_USE_V2_MODEL_RUNNER="0")
    rows = asks(24)
    wanted = by_transformers(rows, max_new_tokens=1)
    from vllm import LLM, SamplingParams

    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=8, speculative_config=drafts, max_logprobs=1)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    outputs = llm.generate([row.for_vllm for row in rows], params, use_tqdm=False)
    accepted = next(one.value for one in llm.get_metrics() if one.name == "vllm:spec_decode_num_accepted_tokens")
    apart, wrong, with_numbers = [], 0, 0
    for output, one in zip(outputs, wanted, strict=True):
        apart.append(float(np.abs(output.fastrm.relevance - one.maps[0]).max()))
        told = output.fastrm.features.get("token_probability")
        if told is not None:
            with_numbers += 1
            engine = np.exp(output.outputs[0].cumulative_logprob / len(output.outputs[0].token_ids))
            wrong += abs(told - engine) > 1e-3
    print(
        json.dumps(
            {
                "accepted": accepted,
                "scored": sum(output.fastrm.scored for output in outputs),
                "calibrated": sum(output.fastrm.calibrated for output in outputs),
                "with_numbers": with_numbers,
                "wrong_numbers": wrong,
                "largest_difference": max(apart),
            }
        )
    )
