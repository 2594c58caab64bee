"""Every number of docs/evidence.md about the proxy and its confidence, from nothing but the embedded model.

    python benchmarks/evidence.py --output docs/results/evidence.md        # half an hour on two cores
    python benchmarks/evidence.py --quick                                  # minutes, to see that it runs

Scenes are drawn, labelled by the teacher (cached), and proxies distilled from them: the paper's forms and ours, with
several targets, sizes and amounts of training questions, each judged on pictures that none has seen, in distribution
and under shifts. Then the confidence: what each feature earns, and what the questions beside the traffic cost and gain.
`fastrm-monitor evaluate` says more about one proxy; this compares.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from report import Report, rounded, with_interval
from rich.progress import Progress

from fastrm_monitor.lab.ask import EMBEDDED, Asker, load_lvlm
from fastrm_monitor.lab.calibration import CONFIDENCE_FEATURES, Held, Probe, features, fit_confidence, fit_probe
from fastrm_monitor.lab.comparison import Answers, Comparison
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, SceneSet
from fastrm_monitor.lab.datasets.scenes import SHIFTED_KINDS
from fastrm_monitor.lab.distill import Recipe, asked_patches, predict, split_by_picture, teacher_maps, train_proxy
from fastrm_monitor.lab.fidelity import FidelityDraws, fidelity
from fastrm_monitor.lab.intervals import Draws
from fastrm_monitor.lab.labels import Labels, default_cache, make_labels
from fastrm_monitor.scoring.entropy import MAP_FEATURES
from fastrm_monitor.scoring.patches import PatchLayout, layout_for
from fastrm_monitor.scoring.proxy import Proxy

TAUGHT = ("natural", "prior_free", "habit_free", "varied")
TRAFFIC, BESIDE = "natural", "habit_free"
WORLDS = {
    "habits hold (natural, spoilt)": ("natural", "spoilt"),
    "no habits (habit_free, varied)": ("habit_free", "varied"),
    "both": ("natural", "spoilt", "habit_free", "varied"),
    "the broken prior itself (how much the states tell; no fair score)": ("counter_prior",),
}
"""All of as many scenes."""
OURS = Recipe()
FORMS = {
    "paper: self-attention, hard targets": replace(OURS, form="self-attention", targets="hard"),
    "paper: query-row, linear, hard targets": replace(OURS, projection_size=0, targets="hard", heads=False),
    "query-row, linear, soft targets": replace(OURS, projection_size=0, targets="soft", heads=False),
    "query-row, soft targets": replace(OURS, targets="soft", heads=False),
    "query-row, hard targets": replace(OURS, targets="hard", heads=False),
    "query-row, centred targets": replace(OURS, heads=False),
    "query-row, centred targets, heads (ours)": OURS,
}
KEY_SIZES = (16, 256)
SHARES = (0.3, 0.5, 0.7, 0.85, 1.0)
GROUPS = {
    "token probability and entropy": ("token_probability", "token_entropy"),
    "P(IK)": ("p_ik",),
    "grounding": ("grounding",),
    "evidence": ("evidence",),
}


@dataclass(eq=False)
class Bench:
    """What all sections share."""

    report: Report
    asker: Asker
    layout: PatchLayout
    cache: Path
    epochs: int
    seeds: Sequence[int]
    progress: Progress
    taught: Labels = field(init=False)
    test: dict[str, Labels] = field(default_factory=dict)
    training: list[int] = field(init=False)
    validation: list[int] = field(init=False)

    def labels(self, kinds: Sequence[str], pictures: int, seed: int) -> Labels:
        """Labels of some kinds of scenes, made or read."""
        return make_labels(
            self.asker, SceneSet(list(kinds), pictures, seed), self.cache, batch=32, progress=self.progress
        )

    def train(self, recipe: Recipe, rows: Sequence[int] | None = None) -> Proxy:
        """A proxy of these training rows, all when None."""
        recipe = replace(recipe, epochs=self.epochs)
        chosen = self.training if rows is None else rows
        return train_proxy(self.taught, chosen, self.validation, recipe, self.layout)

    def judged(self, proxy: Proxy, kind: str) -> list[str]:
        """Cells of a row of the fidelity tables."""
        labels = self.test[kind]
        rows = range(len(labels))
        maps, teacher = predict(proxy, labels, rows), teacher_maps(labels, rows)
        found = fidelity(maps, teacher)
        bounds = FidelityDraws(maps, teacher, 0.3, Draws([one.picture_id for one in labels.facts])).intervals()
        half = found["thresholds"]["0.5"]
        return [
            with_interval(half["accuracy"], bounds["accuracy"]),
            rounded(found["all_negative_accuracy"]),
            rounded(found["base_rate"]),
            with_interval(half["f1"], bounds["f1"]),
            with_interval(found["auprc"], bounds["auprc"]),
            with_interval(found["auprc_within"], bounds["auprc_within"]),
            rounded(found["chance_within"]),
            with_interval(found["iou"], bounds["iou"]),
            with_interval(found["rank_correlation"], bounds["rank_correlation"]),
        ]


HEADS = (
    "accuracy", "all-negative", "base rate", "F1", "AUPRC", "AUPRC within questions", "chance within", "IoU",
    "rank correlation",
)  # fmt: skip


def forms(bench: Bench) -> dict[int, Proxy]:
    """The proxies side by side; returns ours by seed."""
    rows, ours = [], {}
    for name, recipe in FORMS.items():
        for seed in bench.seeds:
            proxy = bench.train(replace(recipe, seed=seed))
            rows.append([f"{name}, seed {seed}", *bench.judged(proxy, TRAFFIC)])
            if recipe is OURS:
                ours[seed] = proxy
    bench.report.table(f"Forms and targets, on {TRAFFIC}: label 0.3, decision 0.5", ("proxy", *HEADS), rows)
    shifted = [
        [f"{kind}, seed {seed}", *bench.judged(proxy, kind)]
        for kind in (TRAFFIC, *SHIFTED_KINDS)
        for seed, proxy in ours.items()
    ]
    bench.report.table("Ours under shift", ("data", *HEADS), shifted)
    return ours


def amounts(bench: Bench) -> None:
    """The curve over training questions, and over key sizes."""
    rows = []
    for count in _steps(len(bench.training)):
        chosen = np.random.default_rng(0).permutation(bench.training)[:count].tolist()
        # The same number of steps, or few questions would be judged by how little they were trained on.
        recipe = replace(OURS, heads=False)
        rows.append([f"{count:,}", *bench.judged(bench.train(recipe, _repeated(chosen, len(bench.training))), TRAFFIC)])
    bench.report.table("Training questions", ("questions", *HEADS), rows)
    sizes = [
        [str(size), *bench.judged(bench.train(replace(OURS, heads=False, key_size=size)), TRAFFIC)]
        for size in KEY_SIZES
    ]
    bench.report.table(f"Key size d_k (ours: {OURS.key_size})", ("d_k", *HEADS), sizes)


def truth(labels: Labels) -> Answers:
    """Which answers are right, of what kind of question and picture."""
    return Answers(*zip(*((one.right, one.group, one.picture_id) for one in labels.facts), strict=True))


class Ranks:
    """AUROC of scores on every test set, as rows of a table."""

    def __init__(self, bench: Bench) -> None:
        self._answers = {kind: truth(own) for kind, own in bench.test.items()}

    def row(self, name: str, values: dict[str, list[float]]) -> list[str]:
        """A score's row: right answers above wrong ones."""
        judged = {kind: Comparison({"": values[kind]}, own).judge()[""] for kind, own in self._answers.items()}
        return [name, *(with_interval(one["auroc"], one["auroc_ci95"]) for one in judged.values())]


def worlds(bench: Bench, pictures: int) -> None:
    """The evidence head taught in worlds with and without habits; and what the true boxes would say."""
    ranks = Ranks(bench)
    rows = [
        ranks.row(
            "token probability",
            {kind: [one.numbers["token_probability"] for one in own.facts] for kind, own in bench.test.items()},
        ),
        ranks.row(
            "teacher's map inside the true boxes", {kind: _inside(bench, own) for kind, own in bench.test.items()}
        ),
    ]
    for name, kinds in WORLDS.items():
        taught = bench.labels(kinds, 2 * pictures // len(kinds), TRAIN_SEED)
        training, validation = split_by_picture(taught, 0.1, 0)
        recipe = replace(OURS, epochs=bench.epochs)
        proxy = train_proxy(taught, training, validation, recipe, bench.layout)
        found = {kind: features(proxy, None, own, range(len(own)), bench.layout)[1] for kind, own in bench.test.items()}
        rows.append(
            ranks.row(f"evidence, {name}", {kind: [one["evidence"] for one in own] for kind, own in found.items()})
        )
    bench.report.table("AUROC: what the evidence head learns from", ("score", *bench.test), rows)


def _inside(bench: Bench, labels: Labels) -> list[float]:
    """Share of the teacher's relevance inside the boxes of what is asked about; unknown without boxes."""
    shares = []
    for row, relevance in enumerate(teacher_maps(labels, range(len(labels)))):
        shown = asked_patches(labels, row, len(relevance), bench.layout)
        shares.append(float(relevance[shown].sum() / max(relevance.sum(), 1e-9)) if shown.any() else float("nan"))
    return shares


def seeds(bench: Bench, proxies: Mapping[int, Proxy], held: Sequence[Held]) -> None:
    """What the confidence has above the token probability, paired, with proxies of several seeds."""
    probe = fit_probe(bench.taught, bench.training)
    rows = []
    for seed, proxy in proxies.items():
        made = fit_confidence(proxy, probe, held, bench.layout, flag_rate=0.2, data="")
        if made is None:
            continue
        row = [str(seed)]
        for own in bench.test.values():
            known = features(proxy, probe, own, range(len(own)), bench.layout)[1]
            scores = {
                "fastrm": [made(one)[0] for one in known],
                "token_probability": [one["token_probability"] for one in known],
            }
            apart = Comparison(scores, truth(own)).differences()["token_probability"]
            row.append(with_interval(apart["difference"], apart["ci95"], sign="+"))
        rows.append(row)
    bench.report.table("AUROC: the confidence less the token probability, paired", ("seed", *bench.test), rows)


def confidence(bench: Bench, proxy: Proxy, held: Sequence[Held]) -> None:
    """What the features earn, and what the traffic's share of the ranking trades."""
    probe = fit_probe(bench.taught, bench.training)
    kinds, ranks = tuple(bench.test), Ranks(bench)
    numbers = {kind: features(proxy, probe, own, range(len(own)), bench.layout)[1] for kind, own in bench.test.items()}

    def fitted(name: str, probe: Probe | None, names: Sequence[str] = CONFIDENCE_FEATURES, share: float = 0.7) -> None:
        made = fit_confidence(proxy, probe, held, bench.layout, flag_rate=0.2, data="", share=share, names=names)
        if made is not None:
            rows.append(ranks.row(name, {kind: [made(one)[0] for one in numbers[kind]] for kind in kinds}))

    rows: list[list[str]] = []
    for name in ("token_probability", "p_ik", "grounding", "evidence"):
        rows.append(ranks.row(f"{name} alone", {kind: [one[name] for one in numbers[kind]] for kind in kinds}))
    for share in SHARES:
        fitted(f"fitted, traffic {share:.0%} of the weight", probe, share=share)
    bench.report.table("AUROC: what the questions beside the traffic cost and gain", ("score", *kinds), rows)
    rows = []
    fitted("all features", probe)
    fitted("with the map's shape", probe, (*CONFIDENCE_FEATURES, *MAP_FEATURES))
    for name, group in GROUPS.items():
        fitted(f"without {name}", probe, tuple(one for one in CONFIDENCE_FEATURES if one not in group))
    bench.report.table("AUROC: what each feature earns (traffic 70 % of the weight)", ("features", *kinds), rows)


def _steps(most: int) -> Iterator[int]:
    count = most
    found = []
    while count >= 500 and len(found) < 4:
        found.append(count)
        count //= 4
    yield from reversed(found)


def _repeated(rows: Sequence[int], count: int) -> list[int]:
    return (list(rows) * -(-count // len(rows)))[:count]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures and epochs, to see that everything runs")
    parser.add_argument("--pictures", type=int, help="scenes of each kind to learn from")
    parser.add_argument("--test-pictures", type=int, help="scenes of each kind to judge on")
    parser.add_argument("--epochs", type=int, help="of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where labels are kept")
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    arguments = parser.parse_args()
    quick = arguments.quick
    pictures, judged = arguments.pictures or (60 if quick else 1000), arguments.test_pictures or (30 if quick else 300)
    report = Report(200, "# The proxy and its confidence on drawn scenes")
    report.line(f"`python {shlex.join(sys.argv)}`")
    report.line(
        f"{platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}; seeds "
        f"{', '.join(map(str, arguments.seeds))}; intervals: 95 %, bootstrap over pictures."
    )
    model, processor = load_lvlm(EMBEDDED)
    with Progress(disable=not report.console.is_terminal, console=report.console) as bar:
        bench = Bench(
            report,
            Asker(model, processor),
            layout_for(model.config, processor),
            arguments.cache,
            arguments.epochs or (2 if quick else 6),
            arguments.seeds,
            bar,
        )
        bench.taught = bench.labels(TAUGHT, pictures, TRAIN_SEED)
        bench.training, bench.validation = split_by_picture(bench.taught, 0.1, 0)
        bench.test = {kind: bench.labels([kind], judged, TEST_SEED) for kind in (TRAFFIC, *SHIFTED_KINDS)}
        held = [bench.labels([kind], max(60, pictures // 4), VALIDATION_SEED) for kind in (TRAFFIC, BESIDE)]
        report.line(
            f"{len(bench.training):,} training questions on {pictures:,} scenes of each of {', '.join(TAUGHT)}; "
            f"{bench.epochs} epochs; {judged} test scenes of each kind."
        )
        ours = forms(bench)
        amounts(bench)
        worlds(bench, pictures)
        traffic = [Held(one, range(len(one))) for one in held]
        seeds(bench, ours, traffic)
        confidence(bench, ours[arguments.seeds[0]], traffic)
    report.end(arguments.output)


if __name__ == "__main__":
    main()
