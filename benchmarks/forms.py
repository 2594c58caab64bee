"""Trained on VQAv2's files, tested on those of VQAv2, GQA and POPE: what of proxy and confidence carries over.

    python benchmarks/forms.py --output docs/results/forms.md      # ten minutes on one core
    python benchmarks/forms.py --quick                             # a minute, to see that it runs

Scenes are written as the official files of each form, so that the loaders read what they will meet; then the commands
of the product are run on them, `fastrm-monitor distill` and `fastrm-monitor evaluate`, and the tables are what their
report.json says. The test pictures are the same in every form, and none of them was trained on: what changes from one
form to the next is what is asked. Files and labels are kept in the cache: a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Report, rounded, with_interval

from fastrm_monitor.lab.datasets.pope import SPLITS
from fastrm_monitor.lab.datasets.scene_files import write_gqa, write_pope, write_vqav2
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, TRAIN_SEED
from fastrm_monitor.lab.labels import default_cache

TAUGHT = ("natural", "prior_free", "habit_free", "varied")
TRAFFIC = "natural"
SCORES = ("fastrm", "token_probability")


def write_training(folder: Path, pictures: int) -> None:
    """Write scenes of every kind that is taught as one VQAv2 data set.

    Args:
        folder: gets `questions.json`, `annotations.json` and `train2014`.
        pictures: of each kind.
    """
    images = folder / "train2014"
    images.mkdir(parents=True)
    whole: dict[str, dict[str, Any]] = {}
    for place, kind in enumerate(TAUGHT):
        own = folder / kind
        *files, drawn = write_vqav2(own, kind, pictures, TRAIN_SEED)
        above = place * pictures  # each kind counts its pictures from 1
        for number in range(1, pictures + 1):
            name = f"COCO_train2014_{number + above:012d}.png"
            (drawn / f"COCO_val2014_{number:012d}.png").rename(images / name)
        for file in files:
            content = json.loads(file.read_text())
            for one in content[file.stem]:
                one["image_id"] += above
                one["question_id"] += 1000 * above
            kept = whole.setdefault(file.stem, {**content, "data_subtype": "train2014", file.stem: []})
            kept[file.stem] += content[file.stem]
        shutil.rmtree(own)
    for name, content in whole.items():
        content["info"] = {"description": f"scenes: {', '.join(TAUGHT)}"}
        (folder / f"{name}.json").write_text(json.dumps(content))


def kept(folder: Path, write: Callable[[Path], object]) -> None:
    """Files that an earlier run left, else written now; labels are those of files, so these must stay the same."""
    if folder.is_dir():
        return
    half = folder.with_name(f"{folder.name}.{os.getpid()}")
    write(half)
    half.rename(folder)


def run(report: Report, folder: Path, cache: Path, *command: str) -> None:
    """Run one command of the product in a folder, and say which; ends this one when it fails."""
    report.line(f"`fastrm-monitor {shlex.join(command)}`")
    whole = [sys.executable, "-m", "fastrm_monitor.cli", *command, "--cache", str(cache.resolve())]
    done = subprocess.run(whole, cwd=folder, check=False)  # noqa: S603 - our own command
    if done.returncode:
        sys.exit(done.returncode)


def distilled(report: Report, folder: Path, cache: Path, pictures: int, epochs: int, seed: int) -> str:
    """Distil on the VQA form; returns the proxy's name in the folder."""
    train = f"train-{pictures}"
    kept(folder / train, partial(write_training, pictures=pictures))
    proxy = f"proxy-{pictures}-{epochs}-{seed}"
    files = (
        "--questions", f"{train}/questions.json", "--annotations", f"{train}/annotations.json",
        "--images", f"{train}/train2014",
    )  # fmt: skip
    options = ("--epochs", str(epochs), "--seed", str(seed), "--batch", "32")
    run(report, folder, cache, "distill", "--output", proxy, "--dataset", "vqav2", *files, *options)
    return proxy


def evaluated(report: Report, folder: Path, cache: Path, proxy: str, pictures: int) -> dict[str, Any]:
    """Evaluate on all forms, the VQA form first; returns report.json."""
    test = f"test-{pictures}"
    for name, write in {"vqav2": write_vqav2, "gqa": write_gqa, "pope": write_pope}.items():
        (folder / test).mkdir(exist_ok=True)
        kept(folder / test / name, partial(write, kind=TRAFFIC, pictures=pictures, seed=TEST_SEED))
    files = [
        "--dataset", "vqav2", "--questions", f"{test}/vqav2/questions.json",
        "--annotations", f"{test}/vqav2/annotations.json", "--images", f"{test}/vqav2/val2014",
        "--dataset", "gqa", "--questions", f"{test}/gqa/questions.json",
        "--scene-graphs", f"{test}/gqa/scene_graphs.json", "--images", f"{test}/gqa/images",
    ]  # fmt: skip
    for split in SPLITS:
        questions, images = f"{test}/pope/coco_pope_{split}.json", f"{test}/pope/val2014"
        files += ["--dataset", "pope", "--questions", questions, "--images", images]
    output = f"report-{pictures}-{proxy}"
    options = ("--sections", "none", "--batch", "32")
    run(report, folder, cache, "evaluate", "--proxy", proxy, "--output", output, *files, *options)
    found: dict[str, Any] = json.loads((folder / output / "report.json").read_text())
    return found


def parts_of(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The data sets of a report by the names of their forms, the VQA form first."""
    parts: dict[str, Mapping[str, Any]] = {"VQA form": found}
    for part in found["shifts"].values():
        splits = list(part["pope"] or ())
        parts[f"POPE form, {splits[0]}" if splits else "GQA form"] = part
    return parts


def said_of_calibration(folder: Path) -> str:
    """What the proxy's confidence was fitted on."""
    fitted = json.loads((folder / "config.json").read_text())["metrics"]["confidence"]
    if fitted is None:
        return "The proxy is uncalibrated: too few right or wrong answers on the pictures held out."
    return (
        f"The confidence was fitted on {fitted['answers']:,} answers about {fitted['pictures']} pictures of the "
        f"training files that were held out, of all {len(TAUGHT)} kinds alike, {fitted['accuracy']:.3f} of them right: "
        "of files `distill` calibrates on the pictures that also end the training. Its threshold flags the "
        f"{fitted['flag_rate']:.0%} of these answers that are least sure."
    )


def said_of_overlap(found: Mapping[str, Any]) -> str:
    """Whether the product noticed pictures of the training, and questions that have no label."""
    parts = parts_of(found)
    known = sum(own["pictures"] for part in parts.values() for own in (part["in_training"] or {}).values())
    left = sum(part["left_out"]["questions"] for part in parts.values())
    return f"Test pictures that the proxy was made of: {known}; questions without a label: {left}."


def tables(found: Mapping[str, Any], report: Report) -> None:
    """What each form says, one question a table."""
    parts = parts_of(found)
    changes = dict(zip(list(parts)[1:], found["generalisation"].values(), strict=True))
    rows = []
    for name, part in parts.items():
        for kind, own in {"all": part["accuracy"]["all"], **part["accuracy"]["by_group"]}.items():
            if kind == "all" or len(part["accuracy"]["by_group"]) > 1:
                rows.append([name, kind, f"{own['n']:,}", _with(own, "rate")])
    report.table("The model's answers", ("data", "kind of question", "questions", "right"), rows)

    rows = []
    for name, part in parts.items():
        own = part["fidelity"]
        half, bounds = own["thresholds"]["0.5"], own["ci95"]
        rows.append(
            [
                name,
                f"{own['questions']:,} on {part['pictures']}",
                *(_told(own[key], bounds[key]) for key in ("base_rate", "all_negative_accuracy")),
                *(_told(half[key], bounds[key]) for key in ("accuracy", "f1")),
                *(_told(own[key], bounds[key]) for key in ("auprc", "auprc_within", "chance_within")),
                _told(own["auprc_within"] - own["chance_within"], bounds["auprc_within_gain"], sign="+"),
                _told(own["rank_correlation"], bounds["rank_correlation"]),
            ]
        )
    heads = (
        "data", "questions on pictures", "base rate", "all-negative", "accuracy", "F1", "AUPRC",
        "AUPRC within questions", "chance within", "above chance", "rank correlation",
    )  # fmt: skip
    report.table("Fidelity of the proxy: label 0.3, decision 0.5", heads, rows)

    rows = []
    for name, part in parts.items():
        own, blind = part["fidelity"], part["question_blind"]
        cells = [_told(own["auprc_within"], own["ci95"]["auprc_within"])]
        for one in blind.values():
            cells += [str(one["n"]), rounded(one["auprc_within"]), _with(one, "difference", sign="+")]
        rows.append([name, *cells])
    heads = (
        "data", "proxy", "questions", "mean map of other pictures", "proxy above it", "questions",
        "map of the other questions", "proxy above it",
    )  # fmt: skip
    report.table("AUPRC within questions, beside maps that do not know the question", heads, rows)

    named = {
        "patch_accuracy": "accuracy of patches",
        "f1": "F1",
        "auprc": "AUPRC",
        "auprc_within": "AUPRC within questions",
        "answer_accuracy": "answers right",
        "auroc": "AUROC of the confidence",
    }
    rows = [
        [name, str(own["pictures_shared"]), *(_with(own[key], "difference", sign="+") for key in named)]
        for name, own in changes.items()
    ]
    heads = ("data", "pictures paired", *named.values())
    report.table("Change against the VQA form", heads, rows)

    rows = []
    for name, part in parts.items():
        scores, apart = part["confidence"], part["auroc_difference"]["token_probability"]
        rows.append(
            [
                name,
                f"{scores['fastrm']['wrong']} of {scores['fastrm']['n']:,}",
                *(_with(scores[score], "auroc", bounds="auroc_ci95") for score in SCORES),
                _with(apart, "difference", sign="+"),
                *(_with(scores[score]["within"], "auroc") for score in SCORES),
                _with(apart["within"], "difference", sign="+"),
            ]
        )
    heads = (
        "data", "wrong", "confidence", "token probability", "confidence above it", "confidence, within kinds",
        "token probability, within kinds", "confidence above it, within kinds",
    )  # fmt: skip
    report.table("AUROC: a right answer scores above a wrong one", heads, rows)

    rows = []
    for name, part in parts.items():
        flags = part["flags"] or {}
        rows.append(
            [
                name,
                *(_with(flags[of], "rate") if of in flags else "-" for of in ("of_wrong", "of_right")),
                *(rounded(part["confidence"]["fastrm"].get(key)) for key in ("ece", "brier")),
            ]
        )
    heads = ("data", "flagged of wrong", "flagged of right", "calibration error", "Brier score")
    report.table("The threshold and the probabilities, as fitted on the VQA form", heads, rows)

    rows = [
        [
            name,
            str(part["pointing"]["proxy"]["n"]),
            *(_with(part["pointing"][who], "hit_rate") for who in ("proxy", "teacher")),
            _with(part["pointing"]["difference"], "difference", sign="+"),
            rounded(part["pointing"]["proxy"]["chance"]),
        ]
        for name, part in parts.items()
        if part["pointing"]["proxy"]["n"]
    ]
    title = "Pointing: the most relevant patch is in a box of what is asked about, where a form has boxes"
    report.table(title, ("data", "questions", "proxy", "teacher", "proxy above it", "chance"), rows)

    rows = [
        [
            split,
            f"{own['n']:,}",
            *(_with(own[key], "rate") for key in ("accuracy", "precision", "recall")),
            _with(own["f1"], "value"),
            _with(own["yes_rate"], "rate"),
        ]
        for part in parts.values()
        for split, own in (part["pope"] or {}).items()
    ]
    heads = ("split", "questions", "accuracy", "precision", "recall", "F1", "answers yes")
    report.table("POPE's measures of the model; half of the objects are there", heads, rows)


_told = partial(with_interval, without=" (too few)")


def _with(own: Mapping[str, Any], value: str, sign: str = "", bounds: str = "ci95") -> str:
    return _told(own[value], own[bounds], sign=sign)


def main() -> None:
    """Write the files, distil, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures and epochs, to see that everything runs")
    parser.add_argument("--pictures", type=int, help="scenes of each kind to learn from")
    parser.add_argument("--test-pictures", type=int, help="scenes to judge on")
    parser.add_argument("--epochs", type=int, help="of the proxy, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the proxy")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where labels, and beside it files, are kept"
    )
    parser.add_argument("--output", type=Path, help="write the report there too, as markdown")
    chosen = parser.parse_args()
    quick = chosen.quick
    pictures, judged = chosen.pictures or (60 if quick else 600), chosen.test_pictures or (25 if quick else 200)
    epochs = chosen.epochs or (2 if quick else 8)
    folder = chosen.cache.parent / "forms"
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(200, "# Trained on the VQA form, tested on GQA and POPE")
    report.line(f"`python {shlex.join(sys.argv)}`")
    report.line(
        f"{platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}; seed {TRAIN_SEED} of the "
        f"training scenes, {TEST_SEED} of the test scenes, {chosen.seed} of the proxy; intervals: 95 %, bootstrap over "
        "pictures."
    )
    report.line("The product's own commands, in the folder with the files:")
    proxy = distilled(report, folder, chosen.cache, pictures, epochs, chosen.seed)
    found = evaluated(report, folder, chosen.cache, proxy, judged)
    made = json.loads((folder / proxy / "config.json").read_text())["training"]
    report.line(
        f"The proxy: {made['questions']:,} questions on {made['pictures']:,} of {len(TAUGHT) * pictures:,} pictures, "
        f"{pictures:,} of each of {', '.join(TAUGHT)}; at most {epochs} epochs. VQAv2's files have no boxes, so there "
        "is no grounding head."
    )
    report.line(said_of_calibration(folder / proxy))
    report.line(
        f"The same {judged} {TRAFFIC} test scenes in every form. GQA's has those questions of the VQA form that do not "
        "count and whose phrase stands for one object, with boxes; POPE's asks of up to three objects that are there "
        "and of as many that are not. The draws of the VQA and the POPE form are paired on the pictures; GQA's files "
        "name theirs otherwise, so its draws are independent and its intervals of change wider than they need be. "
        "AUPRC and F1 also follow the base rate, another one in each form."
    )
    report.line(said_of_overlap(found))
    tables(found, report)
    report.end(chosen.output)


if __name__ == "__main__":
    main()
