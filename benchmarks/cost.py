"""What one map of LLaVA-1.5-7B costs: both teachers and both proxy forms beside the forward pass, in one run.

    python benchmarks/cost.py                  # on a GPU the 7B shape in bf16, without one a small shape
    python benchmarks/cost.py --repeats 3      # to see that it runs
    python benchmarks/cost.py --output FILE    # keeps the numbers as JSON

The configuration is the real one and the weights are random: time and memory do not depend on their values.
`fastrm-monitor evaluate` prints the same for the model that it evaluates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from decode import build, prompts, shape_7b, shape_small
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastrm_monitor.lab.cost import cost
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    model = build(shape_7b() if on_gpu else shape_small(), device, torch.bfloat16 if on_gpu else torch.float32)
    width = model.config.text_config.hidden_size
    proxies = {
        "query-row": build_proxy(ProxyConfig(width, "query-row")),
        "self-attention": build_proxy(ProxyConfig(width, "self-attention")),
    }
    console = Console()
    with Progress(console=Console(stderr=True)) as bar:
        found = cost(model, prompts(model, 1), proxies, repeats=chosen.repeats, progress=bar)
    if not on_gpu:
        console.print("No GPU here: a small shape on the CPU, whose numbers say nothing of LLaVA-1.5-7B.")
    console.print(
        f"{found['device']}, {found['parameters'] / 1e6:.0f} M parameters, {found['layers']} layers, "
        f"{found['prompt_tokens']} tokens of the prompt, {found['image_tokens']} of them of the picture"
    )
    table = Table("variant", "ms", "MiB alive", "less time than published", "than by row")
    for name, own in found["seconds"].items():
        less = [found[figure].get(name) for figure in ("less_time_than_published", "less_time_than_row")]
        table.add_row(
            name,
            f"{1000 * own['median']:.3f}",
            f"{found['memory']['alive'][name] / 2**20:.2f}",
            *(f"{100 * one['value']:.3f} %" if one else "" for one in less),
        )
    console.print(table)
    for name, own in found["extra_memory_of_forward"].items():
        console.print(
            f"{name}: {own['bytes'] / 2**20:.2f} MiB more at the peak, {100 * own['value']:.3f} % of the pass with "
            f"the weights, {100 * own['of_working_memory']:.1f} % without them"
        )
    for figure, own in found["goals"].items():
        reached = ", ".join(f"{name} {'met' if met else 'missed'}" for name, met in own["met"].items())
        console.print(f"{figure}, goal {own['goal']}: {reached}")
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
