"""What one map costs: both teachers and both proxy forms beside the forward pass, for LLaVAs of several sizes.

    python benchmarks/cost.py --output docs/results/cost.md   # the 7B shape in bf16 on a GPU, else smaller shapes
    python benchmarks/cost.py --repeats 3 --shapes small      # to see that it runs

The weights are random: time and memory do not depend on their values. The proxies are the paper's linear forms with
d_k = 256 and the form that `distill` makes. `fastrm-monitor evaluate` prints the same for the model that it evaluates.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from decode.model import build, prompts, shape_7b, shape_middle, shape_small
from report import Report, with_interval
from rich.progress import Progress

from fastrm_monitor.lab.cost import GOALS, cost
from fastrm_monitor.lab.distill import Recipe
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

SHAPES = {"small": shape_small, "middle": shape_middle, "7B": shape_7b}


def measured(shape: str, repeats: int, bar: Progress) -> dict[str, Any]:
    """The cost of one map of one shape; see `lab.cost`."""
    on_gpu = torch.cuda.is_available()
    model = build(
        SHAPES[shape](), torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32
    )
    width, ours = model.config.text_config.hidden_size, Recipe()
    proxies = {
        "query-row, linear": build_proxy(ProxyConfig(width, "query-row", key_size=256)),
        "self-attention, linear": build_proxy(ProxyConfig(width, "self-attention", key_size=256)),
        "ours": build_proxy(
            ProxyConfig(
                width, key_size=ours.key_size, projection_size=ours.projection_size, grounding=True, evidence=True
            )
        ),
    }
    return cost(model, prompts(model, 1), proxies, repeats=repeats, progress=bar)


def show(shape: str, found: dict[str, Any], report: Report) -> None:
    """One shape's table, and which goals are met."""
    rows = []
    for name, own in found["seconds"].items():
        less = [found[figure].get(name) for figure in ("less_time_than_published", "less_time_than_row")]
        extra = found["extra_memory_of_forward"].get(name)
        rows.append(
            [
                name,
                f"{1000 * own['median']:.3f}",
                f"{found['memory']['alive'][name] / 2**20:.2f}",
                *(with_interval(100 * one["value"], [100 * end for end in one["ci95"]]) if one else "" for one in less),
                f"{100 * extra['value']:.3f}" if extra else "",
            ]
        )
    heads = (
        "variant", "ms", "MiB alive", "% less time than published", "% less than by row", "% more memory than the pass",
    )  # fmt: skip
    title = (
        f"{shape}: {found['parameters'] / 1e6:,.0f} M parameters, {found['layers']} layers, {found['prompt_tokens']} "
        f"tokens, {found['image_tokens']} of them of the picture"
    )
    report.table(title, heads, rows)
    for figure, goal in GOALS.items():
        met = found["goals"][figure]["met"]
        reached = ", ".join(f"{name} {'met' if own else 'missed'}" for name, own in met.items())
        report.line(f"{figure}, goal {goal}: {reached}.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["7B"] if torch.cuda.is_available() else ["small", "middle"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=default)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    chosen = parser.parse_args()
    report = Report(160, "# What one map costs")
    report.line(f"`python {shlex.join(sys.argv)}`")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    report.line(
        f"{device}, {torch.get_num_threads()} threads; torch {torch.__version__}; random weights; {chosen.repeats} "
        "rounds, ratios within rounds, with 95 % intervals of their medians."
    )
    with Progress(disable=not report.console.is_terminal, console=report.console) as bar:
        for shape in chosen.shapes:
            show(shape, measured(shape, chosen.repeats, bar), report)
    report.end(chosen.output)


if __name__ == "__main__":
    main()
