"""Proxy and confidence on other LVLMs: three sizes of LLaVA, and one that answers from habit, on the same scenes.

    python benchmarks/sizes.py --output docs/results/sizes.md      # an hour on two cores
    python benchmarks/sizes.py --quick                             # a minute, to see that it runs

The two smaller models are trained here, by the stages of `fastrm_monitor.lab.embed` and with as many steps and pictures
as the largest had, which is the one in the package; `--steps` takes a share of them. The last one is that model,
trained on where the habit nearly always holds, until it answers from habit also where it could look: the failure that a
relevance map should show best. The proxies are distilled from the same questions by the same recipe. Trained models and
labels are kept in the cache: a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Report, with_interval
from rich.progress import Progress

from fastrm_monitor.lab.ask import EMBEDDED, Asker, load_lvlm
from fastrm_monitor.lab.cost import PUBLISHED, ROW, cost
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, SceneSet
from fastrm_monitor.lab.distill import Recipe
from fastrm_monitor.lab.embed import STAGES, Stage, Trainer, build_model, build_processor, save
from fastrm_monitor.lab.judgement import judge_set
from fastrm_monitor.lab.labels import Labels, default_cache, make_labels
from fastrm_monitor.lab.proxies import make_proxy
from fastrm_monitor.scoring.checkpoint import load_proxy
from fastrm_monitor.scoring.patches import layout_for

TAUGHT = ["natural", "prior_free", "habit_free", "varied"]
TRAFFIC, BESIDE = "natural", "habit_free"
SHIFTS = ("counter_prior", "counter_prior_clear", "noise")
SEED = 1
PICTURES = 48
"""A step, as the model in the package had."""


@dataclass(frozen=True)
class Size:
    """Of a LLaVA: width and layers of the language model, layers of the tower."""

    width: int
    layers: int
    tower: int


SMALLER = {"small": Size(64, 2, 1), "middle": Size(96, 3, 2)}


PACKAGED = "in the package"
ENGRAINED = Stage("engrained", 500, 1e-3, {"engrained": 1.0}, patch_weight=0.0)


def trained(size: Size, steps: float, report: Report, folder: Path) -> None:
    """Train a model of this size.

    Args:
        size: of the model.
        steps: share of each stage's steps.
        report: shows the steps.
        folder: where it is written.
    """
    torch.manual_seed(SEED)
    processor = build_processor()
    model = build_model(processor, size.width, size.layers, size.tower)
    trainer = Trainer(model, processor, seed=SEED, pictures=PICTURES, questions=8, log=report.console.print)
    for stage in STAGES:
        trainer.run(replace(stage, steps=max(1, round(stage.steps * steps))))
    save(model.eval(), processor, folder)


def habitual(steps: float, report: Report, folder: Path) -> None:
    """Train the model in the package on, by `ENGRAINED`; arguments as those of `trained`."""
    model, processor = load_lvlm(EMBEDDED, device="cpu")
    model.requires_grad_(True)
    trainer = Trainer(model, processor, seed=SEED + 1, pictures=PICTURES, questions=8, log=report.console.print)
    trainer.run(replace(ENGRAINED, steps=max(1, round(ENGRAINED.steps * steps))))
    save(model.eval(), processor, folder)


def kept(name: str, make: Callable[[Path], None], cache: Path, report: Report) -> str:
    """Folder of a model; made when no earlier run left it."""
    folder = cache.parent / "sizes" / name
    if (folder / "processor_config.json").is_file():
        report.line(f"{name} was trained by an earlier run.")
        return str(folder)
    began = time.perf_counter()
    make(folder)
    report.line(f"{name}: trained in {(time.perf_counter() - began) / 60:.1f} minutes.")
    return str(folder)


@dataclass(frozen=True)
class Amounts:
    """Scenes of each kind to learn from and to judge on, and epochs of the proxy."""

    taught: int
    judged: int
    epochs: int


class Found:
    """What one model and its proxy are worth.

    Args:
        name: folder of the model, or "embedded".
        amounts: see `Amounts`.
        cache: of the labels.
        bar: shows what is done.
        thresholds: of another model, to be carried over; its own on `TRAFFIC` when None.
    """

    def __init__(
        self, name: str, amounts: Amounts, cache: Path, bar: Progress, thresholds: Mapping[str, float] | None = None
    ) -> None:
        self.model, processor = load_lvlm(name, device="cpu")
        asker, layout = Asker(self.model, processor), layout_for(self.model.config, processor)

        def labels(kinds: list[str], pictures: int, seed: int) -> Labels:
            return make_labels(asker, SceneSet(kinds, pictures, seed), cache, batch=32, progress=bar)

        taught = labels(TAUGHT, amounts.taught, TRAIN_SEED)
        held = [labels([kind], max(60, amounts.taught // 4), VALIDATION_SEED) for kind in (TRAFFIC, BESIDE)]
        with tempfile.TemporaryDirectory(prefix="fastrm-sizes-") as place:
            make_proxy(asker, taught, held, Recipe(epochs=amounts.epochs), Path(place), "scenes", name, bar)
            folder = load_proxy(place)
        self.parts: dict[str, dict[str, Any]] = {}
        self.thresholds = thresholds
        for kind in (TRAFFIC, *SHIFTS):
            judged = judge_set(
                labels([kind], amounts.judged, TEST_SEED), folder, layout, kind, thresholds=self.thresholds
            )
            self.parts[kind], self.thresholds = judged["part"], judged["thresholds"]
        sample = next(iter(SceneSet([TRAFFIC], 1, TEST_SEED)))
        inputs = asker.inputs([sample.picture()], [sample.question])
        self.cost = cost(self.model, inputs, {"proxy": folder.proxy}, progress=bar)
        self.questions, self.proxy = len(taught), folder.proxy


def tables(found: dict[str, Found], trainings: dict[str, str], report: Report) -> None:
    """The trade-off, one question a table."""
    kinds = (TRAFFIC, *SHIFTS)
    rows = []
    for name, one in found.items():
        text = one.model.config.get_text_config()
        weights = f"{sum(value.numel() for value in one.model.parameters()):,}"
        sizes = f"{text.num_hidden_layers} x {text.hidden_size}"
        right = [_with(one.parts[kind]["accuracy"]["all"], "rate") for kind in kinds]
        rows.append([name, weights, sizes, trainings[name], *right])
    heads = ("LVLM", "parameters", "layers x width", "training", *(f"right, {kind}" for kind in kinds))
    report.table("The models", heads, rows)
    rows = []
    for name, one in found.items():
        for kind in kinds:
            part = one.parts[kind]["fidelity"]
            half, bounds = part["thresholds"]["0.5"], part["ci95"]
            rows.append(
                [
                    f"{name}, {kind}",
                    *(f"{part[key]:.3f}" for key in ("base_rate", "all_negative_accuracy")),
                    *(_told(half[key], bounds[key]) for key in ("accuracy", "f1")),
                    *(_told(part[key], bounds[key]) for key in ("auprc", "auprc_within")),
                    f"{part['chance_within']:.3f}",
                    _told(part["rank_correlation"], bounds["rank_correlation"]),
                ]
            )
    heads = (
        "LVLM, data", "base rate", "all-negative", "accuracy", "F1", "AUPRC", "AUPRC within questions", "chance within",
        "rank correlation",
    )  # fmt: skip
    report.table("Fidelity of the proxy: label 0.3, decision 0.5", heads, rows)
    rows = []
    for name, one in found.items():
        for kind in kinds:
            scores, apart = one.parts[kind]["confidence"], one.parts[kind]["auroc_difference"]
            ours, token = scores["fastrm"], scores["token_probability"]
            rows.append(
                [
                    f"{name}, {kind}",
                    f"{ours['wrong']} of {ours['n']}",
                    *(_told(own["auroc"], own["auroc_ci95"]) for own in (ours, token)),
                    _with(apart["token_probability"], "difference", sign="+"),
                    _told(scores["map_entropy"]["auroc"], scores["map_entropy"]["auroc_ci95"]),
                ]
            )
    heads = ("LVLM, data", "wrong", "confidence", "token probability", "confidence above it", "map entropy")
    report.table("AUROC: a right answer scores above a wrong one", heads, rows)
    rows = []
    for name, one in found.items():
        for kind in kinds:
            flagged = one.parts[kind]["threshold"]
            cells = [
                _with(flagged[score][figure], "rate")
                for score in ("map_entropy", "token_probability")
                for figure in ("flag_rate", "precision")
            ]
            rows.append([f"{name}, {kind}", f"{1 - one.parts[kind]['accuracy']['all']['rate']:.3f}", *cells])
    heads = (
        "LVLM, data", "wrong", "map entropy flags", "of these wrong", "token probability flags", "of these wrong",
    )  # fmt: skip
    title = f"One threshold for all: what flags 10 % of the answers of the model in the package on {TRAFFIC}"
    report.table(title, heads, rows)
    rows = []
    for name, one in found.items():
        seconds = {key: f"{1000 * own['median']:.3f}" for key, own in one.cost["seconds"].items()}
        less = [one.cost[figure]["proxy"] for figure in ("less_time_than_published", "less_time_than_row")]
        rows.append(
            [
                name,
                f"{sum(value.numel() for value in one.proxy.parameters()):,}",
                *(seconds[key] for key in ("forward", PUBLISHED, ROW, "proxy")),
                *(f"{own['value']:.2%} [{own['ci95'][0]:.2%}, {own['ci95'][1]:.2%}]" for own in less),
            ]
        )
    heads = (
        "LVLM", "proxy's parameters", "forward, ms", "published teacher, ms", "row teacher, ms", "proxy, ms",
        "less than published", "less than row",
    )  # fmt: skip
    report.table("Cost of one map", heads, rows)


_told = partial(with_interval, without=" (too few)")


def _with(own: dict[str, Any], value: str, sign: str = "") -> str:
    return _told(own[value], own["ci95"], sign=sign)


def main() -> None:
    """Train, distil, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and pictures, to see that everything runs")
    parser.add_argument("--steps", type=float, help="share of each stage's steps for the smaller models")
    parser.add_argument("--pictures", type=int, help="scenes of each kind to learn from")
    parser.add_argument("--test-pictures", type=int, help="scenes of each kind to judge on")
    parser.add_argument("--epochs", type=int, help="of every proxy")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where labels, and beside it models, are kept"
    )
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    chosen = parser.parse_args()
    quick = chosen.quick
    steps = chosen.steps or (0.01 if quick else 1.0)
    amounts = Amounts(
        chosen.pictures or (30 if quick else 600),
        chosen.test_pictures or (25 if quick else 300),
        chosen.epochs or (1 if quick else 10),
    )
    report = Report(200, "# Other LVLMs: three sizes, and one that answers from habit")
    report.line(f"`python {shlex.join(sys.argv)}`")
    report.line(
        f"{platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}; seed {SEED} of models, 0 "
        "of proxies; intervals: 95 %, bootstrap over pictures."
    )
    names, trainings = {}, {}
    suffix = f"{steps:g}x{PICTURES}-seed{SEED}"
    for name, size in SMALLER.items():
        make = partial(trained, size, steps, report)
        names[name] = kept(f"{size.width}-{size.layers}-{size.tower}-{suffix}", make, chosen.cache, report)
        trainings[name] = f"{sum(max(1, round(stage.steps * steps)) for stage in STAGES):,} x {PICTURES}"
    names[PACKAGED] = EMBEDDED
    trainings[PACKAGED] = f"{sum(stage.steps for stage in STAGES):,} x {PICTURES}"
    names["habitual"] = kept(f"engrained-{suffix}", partial(habitual, steps, report), chosen.cache, report)
    trainings["habitual"] = f"that, then {max(1, round(ENGRAINED.steps * steps))} x {PICTURES}"
    with Progress(disable=not report.console.is_terminal, console=report.console) as bar:
        first = Found(EMBEDDED, amounts, chosen.cache, bar)
        found = {
            name: first if model == EMBEDDED else Found(model, amounts, chosen.cache, bar, first.thresholds)
            for name, model in names.items()
        }
    questions = ", ".join(f"{one.questions:,}" for one in found.values())
    report.line(
        f"Every proxy: {questions} questions on {amounts.taught:,} scenes of each of {', '.join(TAUGHT)}, at most "
        f"{amounts.epochs} epochs; {amounts.judged} test scenes of each kind. Training: steps x pictures."
    )
    tables(found, trainings, report)
    report.end(chosen.output)


if __name__ == "__main__":
    main()
