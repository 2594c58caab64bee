"""What monitoring adds to a decode step of LLaVA-1.5-7B, side by side in one run.

    python -m benchmarks.decode                     # on a GPU the 7B shape in bf16, without one a small shape
    python -m benchmarks.decode --quick             # to see that it runs
    python -m benchmarks.decode --output FILE.md    # keeps what it prints as markdown

The configuration is the real one and the weights are random: time and memory do not depend on their values, and nothing
is downloaded. Each round makes the same answers alone, alone again and watched, in random order; the ratio within a
round is what counts, since the machine's speed drifts, and "again" shows how far from 1 the noise alone gets. A short
call of the same kind goes before each timed one, so that the background thread's work on the answers of one watched
call falls into the next watched call and not into one that is alone.

One handle serves all rounds of a batch size: outside a watched call its hooks stay in place and return at once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.decode.graphs import in_graphs
from benchmarks.decode.load import Load, peak
from benchmarks.decode.model import SAMPLE_RATE, build, prompts, save_random_proxy, shape_7b, shape_small, stand_in
from benchmarks.decode.printing import GOAL_MEMORY, machine, shape_line, time_table, time_verdict, yes
from benchmarks.decode.rounds import Rounds, side_by_side, taken
from benchmarks.decode.waiting import who_waits
from benchmarks.report import Report
from fastrm_monitor import instrument


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, with commas between")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of every answer, at least 2")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each batch size")
    parser.add_argument("--quick", action="store_true", help="few short rounds: to see that it runs, not for numbers")
    parser.add_argument("--output", type=Path, help="markdown file to write")
    chosen = parser.parse_args()
    try:
        chosen.batches = [int(size) for size in chosen.batches.split(",")]
    except ValueError:
        parser.error("--batches takes numbers with commas between, such as 1,8,32")
    if chosen.quick:
        chosen.tokens, chosen.rounds = min(chosen.tokens, 12), min(chosen.rounds, 3)
    if min(chosen.batches) < 1 or chosen.tokens < 2 or chosen.rounds < 1:
        parser.error("batches and rounds start at 1, tokens at 2")
    return chosen


def measure(
    model: LlavaForConditionalGeneration, watch: Callable[[], Any], chosen: argparse.Namespace, report: Report
) -> None:
    """All sections and the verdicts."""
    on_gpu = model.device.type == "cuda"
    eager: list[Rounds] = []
    graphs: list[Rounds] = []
    memory: list[list[str]] = []
    shares: list[float] = []
    for batch in chosen.batches:
        load = Load(prompts(model, batch), chosen.tokens)
        try:
            alone = peak(load, model.generate) if on_gpu else 0
            with watch() as handle:
                if on_gpu:
                    watched = peak(load, model.generate)
                    taken(handle, 2 * batch)
                    shares.append(watched / alone - 1)
                    sizes = [f"{value / 2**20:,.1f}" for value in (alone, watched, watched - alone)]
                    memory.append([str(batch), *sizes, f"{100 * shares[-1]:.3f} %"])
                eager.append(side_by_side(handle, load, chosen.rounds, "eager"))
            if on_gpu:
                graphs.append(in_graphs(model, watch, load, chosen.rounds, report))
        except torch.OutOfMemoryError:
            report.line(f"Batch {batch} does not fit this device's memory; what is missing of it below was left out.")
            torch.cuda.empty_cache()
    time_table(report, "generate(), as it comes", eager)
    if on_gpu:
        time_table(report, "generate(), static cache, the decode step in a CUDA graph and the hooks outside", graphs)
        heads = ("batch", "alone, MiB", "watched, MiB", "added, MiB", "share")
        report.table("Peak memory (torch.cuda.max_memory_allocated)", heads, memory)
    else:
        report.line("CUDA graph of the step: skipped, it needs a GPU.")
        report.line("Peak memory: left out, torch counts it on a GPU only.")
    with watch() as handle:
        load = Load(prompts(model, min(max(chosen.batches), 8)), chosen.tokens)
        added = who_waits(handle, load, report)
    for results in (eager, graphs):
        if results:
            report.line(time_verdict(results, on_gpu))
    if shares:
        met = yes(max(shares) <= GOAL_MEMORY)
        report.line(f"Goal, at most {100 * GOAL_MEMORY:g} % of memory: {met} ({100 * max(shares):.3f} % at most).")
    else:
        report.line(f"Goal, at most {100 * GOAL_MEMORY:g} % of memory: not measured.")
    scope = "" if on_gpu else " (aten::item and aten::_local_scalar_dense, on the CPU)"
    met = "not judged, the profiler saw nothing of the GPU" if added is None else yes(added == 0)
    report.line(f"Goal, no synchronisation added to a decode step: {met}{scope}.")


def main() -> None:
    """Measure and print."""
    chosen = arguments_of()
    report = Report(150, "# What monitoring adds to a decode step")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    report.line(f"Command: `python -m benchmarks.decode {shlex.join(sys.argv[1:])}`")
    report.line(machine(device))
    if not on_gpu:
        report.line(
            "No GPU here: a small shape on the CPU in float32, which shows that the script runs. Its ratios say "
            "nothing of LLaVA-1.5-7B on a GPU, for which the goals are. Times are processor time of the whole process, "
            "one thread of it for the model, so that other jobs on the machine weigh little."
        )
        torch.set_num_threads(1)
        model = build(shape_small(), device, torch.float32)
    else:
        model = build(shape_7b(), device, torch.bfloat16)
    report.line(shape_line(model, chosen.tokens))
    with tempfile.TemporaryDirectory() as folder:
        proxy, store = Path(folder) / "proxy", f"sqlite:///{Path(folder) / 'store.db'}"
        save_random_proxy(proxy, model)
        processor = stand_in(model.config)

        def watch() -> Any:
            return instrument(model, processor, proxy=proxy, store=store, sample_rate=SAMPLE_RATE)

        measure(model, watch, chosen, report)
    if chosen.output is not None:
        chosen.output.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
