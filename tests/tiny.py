"""What the tests of scoring and lab are made of: an untrained LLaVA, an untrained proxy, labels without a model.

The LLaVA has the real classes and the real processor; it is small enough to be made in every test module.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.embed import build_model, build_processor
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import Form, ProxyConfig, build_proxy
from fastrm_monitor.scoring.scorer import Scorer

WIDTH = 64


class Listed:
    """A data set of given samples, in which every answer is right that is the first reference."""

    def __init__(self, samples: list[Sample], name: str = "listed") -> None:
        self.name, self.samples = name, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def right(self, sample: Sample, answer: str) -> bool:
        return answer == sample.answers[0]


@cache
def tiny_processor() -> Any:
    """The processor of the embedded model, made once."""
    return build_processor()


def tiny_model(width: int = WIDTH, layers: int = 2, tower: int = 1, seed: int = 0) -> Any:
    """An untrained `LlavaForConditionalGeneration` in evaluation mode; the same for the same arguments.

    Weights are drawn wider than transformers draws them, else all questions have nearly the same states.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(tiny_processor(), width=width, layers=layers, tower=tower)
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.ndim == 2:
                torch.nn.init.normal_(value, std=0.12)
            if name.endswith("norm.weight"):
                torch.nn.init.uniform_(value, 0.7, 1.3)
    return model.eval()


def tiny_asker(max_new_tokens: int = 2, **sizes: int) -> Asker:
    """An `Asker` of a fresh tiny model."""
    return Asker(tiny_model(**sizes), tiny_processor(), max_new_tokens=max_new_tokens)


def tiny_scorer(confidence: LogisticConfidence | None = None, form: Form = "query-row", width: int = 8) -> Scorer:
    """A scorer of an untrained proxy that is on no disk; the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = form == "query-row"
        config = ProxyConfig(width, form, key_size=4, grounding=heads, evidence=heads)
        proxy = build_proxy(config).eval().requires_grad_(False)
    return Scorer(ProxyFolder(proxy, proxy.config, "abc", torch.ones(width), confidence, Path("nowhere")))


def made_up_labels(
    path: Path, pictures: int, questions: int = 4, width: int = 16, side: int = 3, seed: int = 0
) -> Labels:
    """Labels on disk whose truth is simple.

    Every patch is of one of four sorts, and so is a question; relevant are the patches of the question's sort, the
    first of which is in its box. An answer is mostly right when the first number of the state at t is positive.
    """
    rng = np.random.default_rng(seed)
    sorts = np.random.default_rng(0).normal(size=(4, width))  # the same for every seed
    patches = side * side
    prompts, facts = [], []
    for picture in range(pictures):
        for question in range(questions):
            before, after = int(rng.integers(1, 4)), int(rng.integers(2, 5))
            states = rng.normal(size=(before + patches + after, width))
            asked = int(rng.integers(4))
            hot = rng.permutation(patches)[: max(1, patches // 8)]
            shown = (asked + rng.integers(1, 4, patches)) % 4
            shown[hot] = asked
            states[before : before + patches] = sorts[shown] + 0.3 * rng.normal(size=(patches, width))
            states[-1] = sorts[asked] + 0.3 * rng.normal(size=width)
            states[-1, :2] = rng.normal(), 4.0  # free to say whether the answer is right; marks the last row
            targets = np.zeros(len(states))
            targets[before + np.arange(patches)] = 0.05
            targets[before + hot] = 0.9
            image = np.zeros(len(states), bool)
            image[before : before + patches] = True
            prompts.append((states, image, targets))
            top, left = divmod(int(hot[0]), side)
            facts.append(
                {
                    "id": f"{picture}-{question}",
                    "picture_id": f"picture-{picture}",
                    "group": ("color", "count")[question % 2],
                    "answer": "red",
                    "right": bool(states[-1, 0] + 0.5 * rng.normal() > 0),
                    "numbers": {
                        "token_probability": float(rng.uniform(0.2, 0.99)),
                        "token_entropy": float(rng.uniform(0, 2)),
                    },
                    "boxes": [[left / side, top / side, (left + 1) / side, (top + 1) / side]],
                    "size": [64, 64],
                }
            )
    return write_labels(path, prompts, facts)


def with_right(labels: Labels, right: Callable[[int], bool]) -> Labels:
    """The same labels, of which those rows are right that `right` says."""
    made = copy.copy(labels)
    made.facts = [replace(one, right=right(row)) for row, one in enumerate(labels.facts)]
    return made


def write_labels(
    path: Path, prompts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], facts: Sequence[dict[str, Any]]
) -> Labels:
    """One shard of (states, image, targets) with facts, in the form that `lab.labels` writes."""
    states, image, targets = (np.concatenate([prompt[k] for prompt in prompts]) for k in range(3))
    tensors = {
        "states": torch.from_numpy(states).half(),
        "image": torch.from_numpy(image),
        "targets": torch.from_numpy(targets).half(),
        "lengths": torch.tensor([len(prompt[1]) for prompt in prompts]),
    }
    save_file(tensors, path, metadata={"facts": json.dumps(list(facts))})
    return Labels([path])
