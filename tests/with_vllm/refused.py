"""An engine with the proxy of another model. Prints one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.scoring.checkpoint import load_proxy, save_proxy
from tests.with_vllm.asked import ENGINE, asks, by_transformers, switch_on


def main(folder: Path) -> None:
    rows = asks(6)
    wanted = [one.tokens for one in by_transformers(rows)]
    proxy = load_proxy(PROXY_FOLDER)
    facts = {name: value for name, value in asdict(proxy.config).items() if name in ("norm", "image_token_id")}
    save_proxy(folder / "proxy", proxy.proxy, proxy.norm_weight * 1.5, **facts)
    switch_on(FASTRM_PROXY=str(folder / "proxy"), VLLM_USE_V2_MODEL_RUNNER="0")
    lines: list[str] = []
    logging.getLogger("fastrm_monitor").addHandler(handler := logging.Handler())
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    from vllm import LLM, SamplingParams

    llm = LLM(**ENGINE, enforce_eager=True, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=4)
    outputs = llm.generate([row.for_vllm for row in rows], params, use_tqdm=False)
    # The worker says so with its first output, which a first answer may precede.
    outputs += llm.generate([row.for_vllm for row in rows], params, use_tqdm=False)
    print(
        json.dumps(
            {
                "wanted": wanted * 2,
                "answers": [output.outputs[0].token_ids for output in outputs],
                "reasons": [output.fastrm.reason for output in outputs],
                "log": lines,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
