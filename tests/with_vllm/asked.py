"""The requests that the vLLM tests serve, and what the transformers integration says about them.

Imported by the tests and by the scripts that they start, so it lies on the path of both and knows no test framework.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from fastrm_monitor.demo import MODEL_FOLDER, PROXY_FOLDER
from fastrm_monitor.lab.datasets.scene_set import SceneSet

ENGINE = {
    "model": str(MODEL_FOLDER),
    "dtype": "float32",
    "max_model_len": 256,
    "block_size": 32,
    "limit_mm_per_prompt": {"image": 2},
    "disable_log_stats": False,
    "seed": 0,
}
"""Arguments of every engine under test: the embedded LLaVA, blocks small enough for prefix hits."""


@dataclass(frozen=True, eq=False)
class Ask:
    """One request: pictures (none for text only) and a question."""

    pictures: tuple[Image.Image, ...]
    question: str

    @property
    def prompt(self) -> str:
        return f"USER: {'<image>' * len(self.pictures)}\n{self.question} ASSISTANT:"

    @property
    def for_vllm(self) -> dict[str, Any]:
        if not self.pictures:
            return {"prompt": self.prompt}
        return {"prompt": self.prompt, "multi_modal_data": {"image": list(self.pictures)}}


@dataclass(frozen=True, eq=False)
class Said:
    """What monitoring found out about one answer."""

    tokens: tuple[int, ...]
    maps: tuple[np.ndarray, ...]
    confidence: float | None
    features: dict[str, float]


def asks(pictures: int, questions: int = 1, seed: int = 77) -> list[Ask]:
    """`questions` about each of `pictures` scenes, picture by picture."""
    by_picture: dict[str, list[Any]] = {}
    for sample in SceneSet(["natural"], pictures, seed=seed):
        by_picture.setdefault(sample.picture_id, []).append(sample)
    assert len(by_picture) == pictures
    found = []
    for samples in by_picture.values():
        picture = samples[0].picture()
        found += [Ask((picture,), samples[k % len(samples)].question) for k in range(questions)]
    return found


@cache
def mixed() -> list[Ask]:
    """32 requests: 25 with a picture of their own, 4 with two pictures, 3 with none."""
    single = asks(33)
    double = [
        Ask(one.pictures + two.pictures, one.question)
        for one, two in zip(single[25:33:2], single[26:33:2], strict=False)
    ]
    rows = single[:25] + double[:4] + [Ask((), one.question) for one in single[:3]]
    return [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]


def by_transformers(rows: Sequence[Ask], max_new_tokens: int = 4) -> list[Said]:
    """What the transformers integration says, one request at a time."""
    from fastrm_monitor import instrument
    from fastrm_monitor.lab.ask import load_lvlm

    model, processor = load_lvlm("embedded", device="cpu")
    said = []
    store = os.environ.pop("FASTRM_STORE", None)  # the one under test is not for these
    with instrument(model, processor, proxy=PROXY_FOLDER, sample_rate=0.0) as handle:
        for row in rows:
            inputs = processor(images=list(row.pictures) or None, text=row.prompt, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            (one,) = handle.pop()
            tokens = tuple(output[0, inputs["input_ids"].shape[1] :].tolist())
            said.append(Said(tokens, tuple(map_.values for map_ in one.maps), one.confidence, dict(one.features)))
    if store is not None:
        os.environ["FASTRM_STORE"] = store
    return said


def by_vllm(output: Any) -> Said:
    """What came with a `RequestOutput`."""
    one = output.fastrm
    maps = tuple(map_.values for map_ in one.maps)
    return Said(tuple(output.outputs[0].token_ids), maps, one.confidence, dict(one.features))


def furthest(one: Said, other: Said) -> tuple[float, float]:
    """Largest difference of the maps, and that of the confidences; infinite where only one of them has a score."""
    if (one.confidence is None) != (other.confidence is None) or len(one.maps) != len(other.maps):
        return float("inf"), float("inf")
    if one.confidence is None or other.confidence is None:
        return 0.0, 0.0
    apart = max(float(np.abs(a - b).max()) for a, b in zip(one.maps, other.maps, strict=True))
    return apart, abs(one.confidence - other.confidence)


def switch_on(**more: str) -> None:
    """The environment that a user of the plugin sets, and what vLLM needs on a machine without a GPU."""
    os.environ.update(
        {
            "FASTRM_PROXY": str(PROXY_FOLDER),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            **more,
        }
    )
