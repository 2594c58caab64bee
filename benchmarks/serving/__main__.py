"""What monitoring costs a vLLM server, side by side in one run.

    python -m benchmarks.serving                                   # a random-weight LLaVA, on whatever is there
    python -m benchmarks.serving --model HUB_ID --proxy FOLDER     # a real one
    python -m benchmarks.serving --quick                           # a minute, to see that it runs

One engine for each variant, in a process of its own. They serve the same requests in short rounds, one engine at a
time, in reversed order every other round; each round's figure of a variant over that of vLLM alone is what counts,
since the machine's speed drifts. The other ways to the states take part in every other round, and so does vLLM alone a
second time: the row "again" shows how far from 1 the noise alone gets.

A token's probability costs what the vocabulary costs and an answer's bookkeeping what it costs, whatever the model. The
random-weight model is therefore as large as a short run allows; a model of billions of weights pays relatively less.

All requests of a round come at once, as to a server under full load, so the time to first token has the waiting in it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Report
from benchmarks.serving.engine import WARM
from benchmarks.serving.model import Shape, make_model
from benchmarks.serving.printing import HEADS, machine, memory_lines, rows_of, verdict
from benchmarks.serving.rounds import one_by_one, side_by_side
from benchmarks.serving.traffic import ALONE, EXTRACTED, HOOKED, WATCHED, Load, Setup


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a model; default: a LLaVA with random weights")
    parser.add_argument("--proxy", help="its proxy folder")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--rounds", type=int, help="paired rounds for each load")
    parser.add_argument("--requests", type=int, help="requests of a round")
    parser.add_argument("--width", type=int, help="hidden size of the random-weight model, a multiple of 256")
    parser.add_argument("--layers", type=int, help="layers of the random-weight model")
    parser.add_argument(
        "--variants", nargs="+", choices=(WATCHED, HOOKED, EXTRACTED), help="default: all that run here"
    )
    parser.add_argument(
        "--loads", nargs="+", choices=("prefill-heavy", "decode-heavy", "prefix-hits"), help="default: all"
    )
    parser.add_argument("--eager", action="store_true", help="no torch.compile in any variant")
    parser.add_argument(
        "--threads", type=int,
        help="of each engine on a CPU, bound to no core; with 1 the processor time is a fair measure on a busy machine",
    )  # fmt: skip
    parser.add_argument("--kv-gib", type=int, default=2, help="KV cache of each engine on a CPU")
    parser.add_argument(
        "--apart", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
        help="one engine after the other; default where there is a GPU, whose memory one engine fills",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.proxy is None):
        parser.error("--model and --proxy go together")
    return arguments


def loads_of(arguments: argparse.Namespace) -> tuple[Load, ...]:
    """The three loads at the sizes asked for."""
    many = arguments.requests or (16 if arguments.quick else 64)
    loads = (
        Load("prefill-heavy", many, many, 12, 4),
        Load("decode-heavy", many, many, 12, 16 if arguments.quick else 256),
        Load("prefix-hits", many, max(2, many // 32), 12, 8 if arguments.quick else 16),
    )
    return tuple(load for load in loads if arguments.loads is None or load.name in arguments.loads)


def main() -> None:
    """Measure and print."""
    arguments = arguments_of()
    began = time.perf_counter()
    report = Report(140)
    say = report.console.print
    cuda, quick = torch.cuda.is_available(), arguments.quick
    shape = Shape(
        arguments.width or (256 if quick else 1536), arguments.layers or (2 if quick else 16), 64 if quick else 96
    )
    rounds = arguments.rounds or (2 if quick else 5)
    loads = loads_of(arguments)
    if arguments.threads is not None:  # before the children begin: OpenMP reads it when it is loaded
        os.environ.update({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(arguments.threads)})
    wanted = arguments.variants or [WATCHED, HOOKED, EXTRACTED]
    variants = [ALONE, WATCHED, *(one for one in (HOOKED, EXTRACTED) if one in wanted and (cuda or one != EXTRACTED))]
    with tempfile.TemporaryDirectory(prefix="fastrm-serving-") as name:
        folder = Path(name)
        if arguments.model is None:
            model, proxy = (str(path) for path in make_model(folder, shape))
            what = (
                f"LLaVA with random weights: hidden size {shape.width}, {shape.layers} layers, vocabulary "
                f"{shape.vocabulary:,}, {(shape.side // shape.patch) ** 2} image tokens a picture, proxy d_k "
                f"{shape.key_size}, two-layer projections, both heads"
            )
        else:
            model, proxy, what = arguments.model, arguments.proxy, arguments.model
        setups = [
            Setup(
                variant,
                model,
                proxy,
                f"sqlite:///{folder / 'store.db'}",
                str(folder / "states"),
                arguments.kv_gib,
                max(load.requests for load in loads),
                arguments.eager or quick,
                None if arguments.apart else 0.9 / len(variants),
                arguments.threads,
                loads,
            )
            for variant in variants
        ]
        run = one_by_one if arguments.apart else side_by_side
        results, facts, where = run(setups, rounds, say)
    report.lines += ["# vLLM with and without fastrm-monitor", ""]
    report.line(f"`python -m benchmarks.serving {shlex.join(sys.argv[1:])}`".replace(" `", "`"))
    report.line(machine())
    precision = "16 bits" if cuda else "float32"
    compiled = "no torch.compile" if arguments.eager or quick else "torch.compile on, but in enforce_eager"
    report.line(
        f"{what}; {precision}; {compiled}; greedy; engines {'one by one' if arguments.apart else 'side by side'}."
    )
    report.line(
        f"{rounds} rounds a load{'' if arguments.apart else f', {(rounds + 1) // 2} of them with every variant'}. "
        "Figures are medians over the rounds; 'of alone' is the median of the "
        "rounds' ratios to vLLM alone. All requests of a round come at once: the time to first token includes waiting."
    )
    if EXTRACTED in wanted and not cuda:
        report.line("extract_hidden_states is left out: on a CPU its connector does not run (it needs pinned memory).")
    for load in loads:
        report.table(load.title, HEADS, rows_of(results[load.name]))
        steps = [step for one in results[load.name][ALONE].values() for step in one.steps]
        if steps:
            report.line(
                f"Decode step of vLLM alone with all {load.requests} requests: {1000 * np.median(steps):.0f} ms."
            )
        report.line(verdict(results[load.name]))
    titles = list(dict.fromkeys(title for _, _, spent in where for title in spent))
    cells = [[title, *(f"{100 * spent.get(title, 0) / total:.3f}" for _, total, spent in where)] for title in titles]
    sums = [f"{100 * sum(spent.values()) / total:.3f}" for _, total, spent in where]
    report.table(
        "Where the monitor spends time, in % of one more round", ("entry", *(one.name for one in loads)),
        [*sorted(cells, key=lambda row: -max(map(float, row[1:]))), ["all", *sums]],
    )  # fmt: skip
    for text in memory_lines(facts[WATCHED]):
        report.line(text)
    asked = sum(load.requests * (rounds + 1) + min(WARM, load.requests) for load in loads)  # with the clocked round
    counts = facts[WATCHED].counters
    report.line(
        f"Answers with a picture: {asked:,}; seen {counts.get('seen', 0):,.0f}, scored {counts.get('scored', 0):,.0f}; "
        + ", ".join(f"{key} {value:,.0f}" for key, value in sorted(counts.items()) if key.split()[0] in _TOLD)
    )
    report.line(f"The whole run took {(time.perf_counter() - began) / 60:.1f} minutes.")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")
    if counts.get("scored", 0) != asked:
        raise SystemExit(
            f"Only {counts.get('scored', 0):,.0f} of {asked:,} answers were scored: these figures mean nothing."
        )


_TOLD = ("skipped", "stored", "sampled_out", "dropped", "failed", "flagged")


if __name__ == "__main__":
    main()
