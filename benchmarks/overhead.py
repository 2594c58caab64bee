"""What monitoring adds to an answer of the embedded model, side by side in one run.

    python benchmarks/overhead.py

Each batch is generated twice in turn, alone and watched, in random order; the ratio of the two times is what counts,
since the machine's speed drifts. The embedded model is the worst case: its own pass takes milliseconds, so whatever
is added per answer weighs as much as it ever can. Once no answer is flagged and one in twenty is stored, once every
answer is flagged and stored with its picture, which the background thread does while the next answer is computed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastrm_monitor import instrument
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.lab.ask import Asker, load_lvlm
from fastrm_monitor.lab.datasets.scene_set import SceneSet


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120, help="timed pairs for each batch size")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of every answer")
    arguments = parser.parse_args()
    model, processor = load_lvlm("embedded")
    samples = list(SceneSet(["natural"], 40))
    asker = Asker(model, processor)
    table = Table(title=f"answers of {arguments.tokens} tokens, {torch.get_num_threads()} threads, {model.device}")
    heads = (
        "flagged",
        "batch",
        "pairs",
        "alone, ms",
        "watched, ms",
        "ratio, median",
        "95 % interval",
        "added ms an answer",
    )
    for name in heads:
        table.add_column(name)
    for threshold, batch in ((0.0, 1), (0.0, 8), (1.0, 1), (1.0, 8)):
        inputs = asker.inputs([one.picture() for one in samples[:batch]], [one.question for one in samples[:batch]])
        alone, watched = measure(model, processor, inputs, arguments.pairs, arguments.tokens, threshold)
        ratios = watched / alone
        rng = np.random.default_rng(0)
        drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        table.add_row(
            "all" if threshold else "none",
            str(batch),
            str(len(ratios)),
            f"{1000 * np.median(alone):.1f}",
            f"{1000 * np.median(watched):.1f}",
            f"{np.median(ratios):.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{1000 * np.median(watched - alone) / batch:.2f}",
        )
    Console().print(table)


def measure(
    model: torch.nn.Module,
    processor: object,
    inputs: dict[str, torch.Tensor],
    pairs: int,
    tokens: int,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each generate call, alone and watched, pair by pair."""
    dice = random.Random(0)  # noqa: S311 - an order, not a secret
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'store.db'}"
        handle = instrument(model, processor, proxy=PROXY_FOLDER, store=store, sample_rate=0.05, threshold=threshold)
        watch, bare = model.generate, handle._generate
        for pair in range(pairs + 5):
            for watched in dice.sample((True, False), 2):
                # Hooks stay in place and do nothing outside a watched call.
                generate = watch if watched else bare
                began = time.perf_counter()
                generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
                if pair >= 5:  # the first ones warm up
                    seconds[watched].append(time.perf_counter() - began)
        handle.remove()
    return np.array(seconds[False]), np.array(seconds[True])


if __name__ == "__main__":
    main()
