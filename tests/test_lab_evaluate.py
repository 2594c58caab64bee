"""The report: every number that is promised, none of them NaN, and the same numbers on the screen."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import fastrm_monitor
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.distill import fit_confidence
from fastrm_monitor.lab.evaluate import evaluate, report
from fastrm_monitor.lab.labels import Labels, make_labels
from fastrm_monitor.lab.printing import print_report
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.patches import FixedGridLayout, layout_for
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from fastrm_monitor.scoring.scorer import Scorer
from tests.tiny import made_up_labels, tiny_asker, with_right, write_labels

GRID = FixedGridLayout(4, 3, 3)
RATES = {"accuracy", "precision", "recall", "f1"}
UNCALIBRATED = {
    "fastrm",
    "token_probability",
    "token_entropy",
    "map_entropy",
    "map_mass",
    "map_max",
    "teacher_map_entropy",
}


def folder_of(labels: Labels | None = None, width: int = 16) -> ProxyFolder:
    """An untrained proxy, calibrated on `labels` when given."""
    torch.manual_seed(0)
    proxy = build_proxy(ProxyConfig(width, "query-row", 4)).eval().requires_grad_(False)
    confidence = None
    if labels is not None:
        rows = list(range(len(labels)))
        confidence = fit_confidence(proxy, labels, rows, GRID, flag_rate=0.2, data="made up")
    return ProxyFolder(proxy, proxy.config, "0123456789ab", torch.ones(width), confidence, Path("proxy"))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_up_labels(tmp_path_factory.mktemp("labels") / "labels.safetensors", pictures=50, questions=4)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> ProxyFolder:
    labels = made_up_labels(tmp_path_factory.mktemp("held") / "held.safetensors", pictures=60, questions=4, seed=5)
    return folder_of(labels)


@pytest.fixture(scope="module")
def found(made_up: Labels, calibrated: ProxyFolder) -> dict[str, Any]:
    return evaluate(made_up, calibrated, GRID, "made-up")


def test_tiny_model(tmp_path: Path) -> None:
    """On a LLaVA that is hardly ever right, with an uncalibrated proxy, the whole report is plain JSON without NaN."""
    asker = tiny_asker(max_new_tokens=1)
    labels = make_labels(asker, SceneSet(["natural"], pictures=5, seed=5), tmp_path, batch=32)
    layout = layout_for(asker.model.config, asker.processor)
    folder = folder_of(width=64)
    whole = report("tiny", folder, [evaluate(labels, folder, layout, name) for name in ("natural", "noise")])
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert (whole["schema_version"], whole["library_version"]) == (1, fastrm_monitor.__version__)
    assert whole["proxy"] == {"path": "proxy", "version": "0123456789ab", "form": "query-row"}
    assert (whole["model"], whole["data"], list(whole["shifts"])) == ("tiny", "natural", ["noise"])
    assert (whole["questions"], whole["pictures"]) == (len(labels), 5)
    fidelity = whole["fidelity"]
    assert {"base_rate", "all_negative_accuracy", "auprc", "iou", "rank_correlation", "thresholds"} <= set(fidelity)
    assert all(set(rates) == RATES for rates in fidelity["thresholds"].values())
    assert {"0.3", "0.5", "0.7"} <= set(fidelity["thresholds"])
    assert set(whole["confidence"]) == UNCALIBRATED
    for name, own in whole["confidence"].items():
        assert {"n", "auroc", "auroc_ci95", "by_group"} <= set(own)
        assert ({"ece", "brier"} <= set(own)) == (name in ("fastrm", "token_probability"))
        assert sum(group["n"] for group in own["by_group"].values()) == own["n"] == len(labels)
    assert whole["flags"] is None
    print_report(whole, Console(file=io.StringIO(), width=200))


def test_never_right(made_up: Labels, calibrated: ProxyFolder) -> None:
    """Where every answer is wrong there is no AUROC to give, and the report says null instead of NaN."""
    found = evaluate(with_right(made_up, lambda row: False), calibrated, GRID, "wrong")
    json.dumps(found, allow_nan=False)
    assert found["accuracy"]["all"]["rate"] == 0.0
    assert found["confidence"]["fastrm"]["auroc"] is found["confidence"]["fastrm"]["auroc_ci95"] is None
    assert found["flags"]["of_right"] == {"n": 0, "rate": None, "ci95": None}
    out = io.StringIO()
    print_report(report("m", calibrated, [found]), Console(file=out, width=250))
    assert "nan" not in out.getvalue()


def test_scores_are_the_labels(made_up: Labels, calibrated: ProxyFolder, found: dict[str, Any]) -> None:
    """Accuracy and the AUROC of the token probability are those of the facts, counted here pair by pair."""
    right = np.array([facts.right for facts in made_up.facts])
    assert found["accuracy"]["all"]["rate"] == pytest.approx(right.mean())
    assert found["accuracy"]["by_group"]["color"]["n"] == 100
    for name, sign in (("token_probability", 1), ("token_entropy", -1)):
        score = sign * np.array([facts.numbers[name] for facts in made_up.facts])
        pairs = score[right][:, None] > score[~right][None, :]
        assert found["confidence"][name]["auroc"] == pytest.approx(pairs.mean())
    assert found["confidence"]["token_probability"]["wrong"] == int((~right).sum())
    assert set(found["confidence"]) == UNCALIBRATED | {"p_ik"}


def test_confidence_is_what_is_served(made_up: Labels, calibrated: ProxyFolder, found: dict[str, Any]) -> None:
    """The judged confidence, and so the flags, are those that the scorer gives for the same states."""
    scorer, served = Scorer(calibrated), []
    for row, facts in enumerate(made_up.facts):
        one = made_up.batch([row])
        ((relevance, p_ik),) = scorer.measure(one.states, one.image, one.valid).rows()
        served.append(scorer.conclude(relevance, GRID.grids(9, []), p_ik, facts.numbers).confidence)
    right = np.array([facts.right for facts in made_up.facts])
    confidence = np.array(served)
    assert found["confidence"]["fastrm"]["brier"] == pytest.approx(np.mean((confidence - right) ** 2), abs=1e-4)
    assert found["confidence"]["fastrm"]["auroc"] > 0.75
    assert calibrated.confidence is not None
    low = confidence < calibrated.confidence.threshold
    assert found["flags"]["threshold"] == calibrated.confidence.threshold
    assert found["flags"]["of_wrong"]["rate"] == pytest.approx(low[~right].mean())
    assert found["flags"]["of_right"]["rate"] == pytest.approx(low[right].mean())
    assert found["flags"]["of_wrong"]["n"] == int((~right).sum())


def test_pointing_uses_the_boxes(found: dict[str, Any]) -> None:
    """The made-up teacher always points into its box of one patch in nine; both have intervals."""
    pointing = found["pointing"]
    assert (pointing["teacher"]["n"], pointing["teacher"]["hit_rate"]) == (200, 1.0)
    assert pointing["teacher"]["chance"] == pytest.approx(1 / 9)
    low, high = pointing["proxy"]["ci95"]
    assert low <= pointing["proxy"]["hit_rate"] <= high


def targets(path: Path, maps: list[tuple[str, float]]) -> Labels:
    """Labels of 2 x 2 patches whose teacher map is one number everywhere, with the given picture ids."""
    image = np.array([True] * 4 + [False])
    prompts = [(np.ones((5, 16)), image, np.where(image, value, 0.0)) for _, value in maps]
    base = {"group": "color", "answer": "red", "right": True, "boxes": [], "size": [8, 8]}
    numbers = {"token_probability": 0.5, "token_entropy": 0.5}
    facts = [{"id": str(n), "picture_id": name, "numbers": numbers, **base} for n, (name, _) in enumerate(maps)]
    return write_labels(path, prompts, facts)


def test_question_sensitivity_by_hand(tmp_path: Path) -> None:
    """Two questions of each picture are compared: mean absolute difference, its interval, and how many were equal."""
    maps = [("a", 0.25), ("a", 0.75), ("b", 0.5), ("b", 0.5), ("c", 0.1), ("d", 0.0), ("a", 1.0), ("d", 1.0)]
    labels = targets(tmp_path / "labels.safetensors", maps)
    found = evaluate(labels, folder_of(), FixedGridLayout(4, 2, 2), "by hand")["question_sensitivity"]
    teacher = found["teacher"]
    assert (teacher["pairs"], teacher["identical"]) == (3, 1)
    assert teacher["mean_absolute_difference"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert teacher["ci95"] == pytest.approx([0.0, 1.0])
    assert found["proxy"] == {"pairs": 3, "mean_absolute_difference": 0.0, "ci95": [0.0, 0.0], "identical": 3}


def test_question_sensitivity_takes_a_hundred_pictures(tmp_path: Path) -> None:
    """At most 100 pairs are compared; without a picture of two questions nothing is claimed."""
    many = targets(tmp_path / "many.safetensors", [(str(n // 2), float(n % 2)) for n in range(240)])
    found = evaluate(many, folder_of(), FixedGridLayout(4, 2, 2), "many")["question_sensitivity"]["teacher"]
    assert (found["pairs"], found["mean_absolute_difference"]) == (100, 1.0)
    single = targets(tmp_path / "single.safetensors", [(str(n), 0.5) for n in range(4)])
    found = evaluate(single, folder_of(), FixedGridLayout(4, 2, 2), "single")
    nothing = {"pairs": 0, "mean_absolute_difference": None, "ci95": None, "identical": None}
    assert found["question_sensitivity"] == {"proxy": nothing, "teacher": nothing}
    assert found["pointing"]["proxy"]["n"] == 0
    out = io.StringIO()
    print_report(report("m", folder_of(), [found]), Console(file=out, width=250))
    assert "Pointing game" not in out.getvalue()


def test_printed_numbers_are_the_reports(found: dict[str, Any], calibrated: ProxyFolder) -> None:
    """What people read is what the file says, to three digits, for the data set and each shift."""
    out = io.StringIO()
    print_report(report("m", calibrated, [found, {**found, "data": "shifted"}]), Console(file=out, width=300))
    text = out.getvalue()

    def interval(part: dict[str, Any], name: str, bounds: str = "ci95") -> str:
        return f"{part[name]:.3f} [{part[bounds][0]:.3f}, {part[bounds][1]:.3f}]"

    expected = [
        interval(found["accuracy"]["all"], "rate"),
        f"{found['fidelity']['base_rate']:.3f}",
        f"{found['fidelity']['all_negative_accuracy']:.3f}",
        f"{found['fidelity']['auprc']:.3f}",
        f"{found['fidelity']['thresholds']['0.5']['f1']:.3f}",
        interval(found["pointing"]["proxy"], "hit_rate"),
        interval(found["question_sensitivity"]["proxy"], "mean_absolute_difference"),
        interval(found["question_sensitivity"]["teacher"], "mean_absolute_difference"),
        *(interval(own, "auroc", "auroc_ci95") for own in found["confidence"].values()),
        interval(found["auroc_difference"], "difference"),
        interval(found["flags"]["of_wrong"], "rate"),
        f"{found['confidence']['fastrm']['ece']:.3f}",
    ]
    for number in expected:
        assert text.count(number) >= 2, number
    assert text.count("shifted") >= 6
