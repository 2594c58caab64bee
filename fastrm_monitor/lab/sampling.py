"""Sampling consistency: how often several random answers agree with the greedy one.

The strongest of the common baselines and the dearest: each question is answered several times more. It knows models and
data sets, and nothing of proxies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Sample
from fastrm_monitor.lab.datasets.vqav2 import normalise


def sampling_consistency(
    asker: Asker,
    dataset: Dataset,
    *,
    samples: int = 10,
    temperature: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask each question once greedily and `samples` times at random.

    The answers are drawn from the model's whole distribution at this temperature (no top-k, no nucleus). The caller's
    random state is left as it was.

    Args:
        asker: of the model.
        dataset: the questions; those whose picture cannot be read are left out.
        samples: random answers to each question.
        temperature: of their distribution.
        seed: of the random answers.
        limit: as many questions, evenly spread over the data set; None for all.
        batch: questions at once; the model sees `samples` times as many prompts.
        progress: shows the questions.

    Returns:
        `consistency`: by question id the share of random answers equal to the greedy one after VQAv2's normalisation;
        `seconds_per_question`: what the random answers to one question cost, beside `seconds_per_answer` for the greedy
        one in the same batches; `samples`, `temperature`, `questions`.

    Raises:
        DataError: there are no questions, no picture could be read, or a number is not usable.
    """
    if samples < 1 or temperature <= 0 or batch < 1:
        raise DataError("Sampling needs at least 1 sample, a temperature above 0 and a batch of at least 1.")
    chosen = set(spread(len(dataset), limit))
    asked = (sample for place, sample in enumerate(dataset) if place in chosen)
    bar = progress or Progress(disable=True)
    task = bar.add_task(f"sampling {dataset.name}", total=len(chosen))
    consistency: dict[str, float] = {}
    spent = np.zeros(2)  # seconds of the greedy and of the random answers
    unreadable = ""
    here = [asker.model.device] if asker.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=here):
        torch.manual_seed(seed)
        while chunk := list(islice(asked, batch)):
            readable, pictures = [], []
            for sample in chunk:
                try:
                    pictures.append(sample.picture())
                    readable.append(sample)
                except DataError as error:
                    unreadable = unreadable or str(error)
            if readable:
                found, took = _agreement(asker, readable, pictures, samples, temperature)
                consistency.update(found)
                spent += took
            bar.advance(task, len(chunk))
    if not consistency:
        reason = f"; first: {unreadable}" if unreadable else ""
        raise DataError(f"There is no question of {dataset.name} to ask{reason}.")
    greedy, random = (spent / len(consistency)).tolist()
    return {
        "questions": len(consistency),
        "samples": samples,
        "temperature": temperature,
        "consistency": consistency,
        "seconds_per_question": random,
        "seconds_per_answer": greedy,
    }


def _agreement(
    asker: Asker, chunk: Sequence[Sample], pictures: Sequence[Any], samples: int, temperature: float
) -> tuple[dict[str, float], np.ndarray]:
    """Consistency by question id, and the seconds of the greedy and of the random answers."""
    inputs = asker.inputs(pictures, [sample.question for sample in chunk])
    began = time.perf_counter()
    greedy = [normalise(one.text) for one in asker.answer(inputs)]
    between = time.perf_counter()
    with torch.inference_mode():
        tokens = asker.model.generate(
            **inputs,
            max_new_tokens=asker.max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
        )[:, inputs["input_ids"].shape[1] :]  # (B * samples, S)
    texts = asker.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    took = np.array([between - began, time.perf_counter() - between])
    same = np.array([normalise(text) == greedy[place // samples] for place, text in enumerate(texts)])
    shares = same.reshape(len(chunk), samples).mean(1)
    return {sample.id: float(share) for sample, share in zip(chunk, shares, strict=True)}, took


def spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` places, evenly spread: a data set's neighbours often share a picture."""
    kept = count if limit is None else min(limit, count)
    return np.unique(np.linspace(0, count - 1, kept).round().astype(int)).tolist() if kept else []
