"""What is printed of the machine, the model and the rounds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.decode.model import SAMPLE_RATE, WORDS_BEFORE, WORDS_BEHIND
from benchmarks.decode.rounds import AGAIN, ALONE, WATCHED, Rounds, interval
from benchmarks.report import Report

GOAL_TIME, GOAL_MEMORY = 0.01, 0.002
FIGURES = ("first token", "decode step", "whole call")


def time_table(report: Report, title: str, results: list[Rounds]) -> None:
    """Times and ratios of all batch sizes of one mode."""
    heads = (
        "batch", "figure", "alone, ms", "watched, ms", "ratio, median", "95 % interval", "alone again", "added, ms",
        "95 % interval", "ms an answer",
    )  # fmt: skip
    rows = []
    for one in results:
        for figure, name in enumerate(FIGURES):
            alone, watched = one.times[ALONE][:, figure], one.times[WATCHED][:, figure]
            ratio, low, high = interval(one.ratios(WATCHED, figure))
            again = np.median(one.ratios(AGAIN, figure))
            added, least, most = interval(watched - alone)
            rows.append(
                [
                    str(one.batch),
                    name,
                    f"{np.median(alone):.2f}",
                    f"{np.median(watched):.2f}",
                    f"{ratio:.4f}",
                    f"{low:.4f} to {high:.4f}",
                    f"{again:.4f}",
                    f"{added:.3f}",
                    f"{least:.3f} to {most:.3f}",
                    f"{added / one.batch:.3f}" if figure == 2 else "",
                ]
            )
    report.table(title, heads, rows)
    for one in results:
        report.line(
            f"Batch {one.batch}, {len(one.times[ALONE])} rounds. Watched answers are those made alone: {yes(one.same)}."
            f" Assessments say that scoring took {np.median(one.claimed):.2f} ms an answer (`scoring_seconds`)."
        )


def time_verdict(results: list[Rounds], on_gpu: bool) -> str:
    """The goal for a decode step, in a line."""
    found = [(one, *interval(one.ratios(WATCHED, 1))) for one in results]
    if all(high <= 1 + GOAL_TIME for *_, high in found):
        answer = "yes"
    elif any(low > 1 + GOAL_TIME for _, _, low, _ in found):
        answer = "no"
    else:
        answer = "not decided, an interval reaches across it"
    if not on_gpu:
        answer = f"not judged without a GPU and the 7B shape (the small shape: {answer})"
    each = "; ".join(
        f"batch {one.batch}: {100 * (median - 1):+.2f} % [{100 * (low - 1):+.2f}, {100 * (high - 1):+.2f}]"
        for one, median, low, high in found
    )
    return f"Goal, at most {100 * GOAL_TIME:g} % of decode time, {results[0].mode}: {answer}. {each}."


def yes(truth: bool) -> str:
    """For a sentence."""
    return "yes" if truth else "no"


def machine(device: torch.device) -> str:
    """Hardware and versions."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        chip = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        chip = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "fastrm-monitor")]
    return f"{chip}; Python {platform.python_version()}, {', '.join(versions)}"


def shape_line(model: LlavaForConditionalGeneration, tokens: int) -> str:
    """The model and the load, in a line."""
    text, vision = model.config.text_config, model.config.vision_config
    weights = sum(one.numel() for one in model.parameters())
    prompt = 1 + WORDS_BEFORE + WORDS_BEHIND + model.config.image_seq_length
    return (
        f"{weights / 1e6:,.0f} million random weights in {str(model.dtype).removeprefix('torch.')}, "
        f"{text.num_hidden_layers} layers, hidden {text.hidden_size}, intermediate {text.intermediate_size}, "
        f"{text.num_attention_heads} heads, vocabulary {text.vocab_size}; tower: {vision.num_hidden_layers} layers, "
        f"hidden {vision.hidden_size}, {vision.image_size} pixels, patch {vision.patch_size}; attention: "
        f"{text._attn_implementation}. Prompts of {prompt} tokens, {model.config.image_seq_length} of them for the "
        f"picture; answers of {tokens} tokens. Proxy: query-row, d_k 256, with confidence and P(IK) probe; "
        f"{100 * SAMPLE_RATE:.0f} % of the answers stored in SQLite with their picture."
    )
