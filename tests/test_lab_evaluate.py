"""The evaluation: every number that is promised, none of them NaN, planted truths found, nothing lost by a kill."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import fastrm_monitor
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.lab import evaluate, judgement
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.calibration import Held, fit_confidence, fit_probe
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.pope import POPE
from fastrm_monitor.lab.datasets.scene_files import write_pope
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.distill import teacher_maps
from fastrm_monitor.lab.evaluate import Evaluation
from fastrm_monitor.lab.judgement import Seen, judge_set, see
from fastrm_monitor.lab.labels import Labels, make_labels
from fastrm_monitor.lab.printing import print_report
from fastrm_monitor.lab.report.contents import assemble
from fastrm_monitor.lab.report.page import page
from fastrm_monitor.scoring.checkpoint import ProxyFolder, load_proxy
from fastrm_monitor.scoring.patches import FixedGridLayout, PatchLayout, layout_for
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from fastrm_monitor.scoring.scorer import Scorer
from tests.planted import planted_folder
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
    """An untrained proxy with both heads, calibrated on `labels` when given."""
    torch.manual_seed(0)
    config = ProxyConfig(width, "query-row", 4, grounding=labels is not None, evidence=labels is not None)
    proxy = build_proxy(config).eval().requires_grad_(False)
    confidence = None
    if labels is not None:
        rows = list(range(len(labels)))
        probe = fit_probe(labels, rows)
        confidence = fit_confidence(proxy, probe, [Held(labels, rows)], GRID, flag_rate=0.2, data="made up")
    return ProxyFolder(proxy, proxy.config, "0123456789ab", torch.ones(width), confidence, Path("proxy"))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_up_labels(tmp_path_factory.mktemp("labels") / "labels.safetensors", pictures=50, questions=4)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> ProxyFolder:
    labels = made_up_labels(tmp_path_factory.mktemp("held") / "held.safetensors", pictures=60, questions=4, seed=5)
    return folder_of(labels)


@pytest.fixture(scope="module")
def judged(made_up: Labels, calibrated: ProxyFolder) -> dict[str, Any]:
    return judge_set(made_up, calibrated, GRID, "made-up")


@pytest.fixture(scope="module")
def found(judged: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = judged["part"]
    return part


def evaluation(output: Path, cache: Path, width: int = 64, **changes: Any) -> Evaluation:
    """Of an untrained LLaVA that is hardly ever right, asking it nothing beyond its answers."""
    asker = tiny_asker(max_new_tokens=1)
    values = {
        "asker": asker,
        "model": "tiny",
        "folders": {"proxy": folder_of(width=width)},
        "layout": layout_for(asker.model.config, asker.processor),
        "output": output,
        "cache": cache,
        "progress": Progress(disable=True),
        "sections": (),
        "batch": 32,
        **changes,
    }
    return Evaluation(**values)


def scenes(*kinds: str) -> list[tuple[str, SceneSet]]:
    return [(kind, SceneSet([kind], pictures=4, seed=5)) for kind in kinds]


def test_tiny_model(tmp_path: Path) -> None:
    """On a LLaVA that is hardly ever right, with an uncalibrated proxy, the whole report is plain JSON without NaN."""
    whole, examples = evaluation(tmp_path / "report", tmp_path / "cache").run(scenes("natural", "noise"))
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert (whole["schema_version"], whole["library_version"]) == (5, fastrm_monitor.__version__)
    assert {name: whole["proxy"][name] for name in ("path", "version", "form")} == {
        "path": "proxy",
        "version": "0123456789ab",
        "form": "query-row",
    }
    assert (whole["model"], whole["data"], list(whole["shifts"])) == ("tiny", "natural", ["noise"])
    assert (whole["drawn_from"], whole["shifts"]["noise"]["drawn_from"]) == (
        "scenes-natural-seed5-4x4",
        "scenes-noise-seed5-4x4",
    )
    assert "scenes-noise-seed5-4x4" in page(whole)
    assert (whole["questions"], whole["pictures"]) == (sum(1 for _ in scenes("natural")[0][1]), 4)
    assert {"base_rate", "all_negative_accuracy", "auprc", "iou", "rank_correlation"} <= set(whole["fidelity"])
    assert all(set(rates) == RATES for rates in whole["fidelity"]["thresholds"].values())
    assert {"0.3", "0.5", "0.7"} <= set(whole["fidelity"]["thresholds"])
    assert set(whole["confidence"]) - {"image_attention"} == UNCALIBRATED
    for name, own in whole["confidence"].items():
        assert {"n", "auroc", "auroc_ci95", "aurc", "prr", "spearman", "p", "by_group"} <= set(own)
        assert ({"ece", "brier"} <= set(own)) == (name in ("fastrm", "token_probability"))
        assert sum(group["n"] for group in own["by_group"].values()) == own["n"] == whole["questions"]
    assert whole["flags"] is whole["perturbation"] is whole["cost"] is whole["layers"] is None
    assert not whole["calibrated"]
    assert examples
    assert all(one["proxy"].startswith("data:image/png;base64,") for one in examples)


def test_every_section(tmp_path: Path) -> None:
    """With all sections the report is still plain JSON, is measured throughout, and its page and tables are made."""
    work = evaluation(tmp_path / "report", tmp_path / "cache", sections=evaluate.SECTIONS, again=2)
    data = [("natural", SceneSet(["natural"], pictures=16, seed=5)), ("noise", SceneSet(["noise"], 2, seed=5))]
    whole, examples = work.run(data)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    for part in (whole, whole["shifts"]["noise"]):
        assert part["perturbation"]["questions"] == part["sampling"]["questions"] == 2
    assert whole["confidence"]["sampling"]["n"] == 2
    assert "final" in whole["layers"]["choices"]
    assert whole["cost"]["seconds"]["proxy"]["median"] > 0
    asked = {"time", "memory", "perturbation", "perturbation_fails", "perturbation_shifted", "failure_modes", "layers"}
    assert "not measured" not in {one["verdict"] for one in whole["verdicts"] if one["id"] in asked}
    html = page(whole, examples)
    assert "the section was left out" not in html
    once, each = {"examples", "layers", "cost"}, {"judgement", "perturbation", "sampling"}
    for name, sections in (("natural", once | each), ("noise", each)):
        parts = (tmp_path / "report" / "parts").glob(f"{name}-*.json")
        assert {path.stem.split("-")[-1] for path in parts} == sections
    print_report(whole, Console(file=io.StringIO(), width=100))


def test_data_sets_of_one_name(tmp_path: Path) -> None:
    """Two data sets that are called the same both stand in the report."""
    whole, _ = evaluation(tmp_path / "report", tmp_path / "cache").run(
        [("set", SceneSet(["natural"], pictures=1, seed=seed)) for seed in (5, 6, 7)]
    )
    assert (whole["data"], list(whole["shifts"])) == ("set", ["set (2)", "set (3)"])


def test_names_are_never_shared(tmp_path: Path) -> None:
    """A data set that is called as another would be numbered still has a name, and parts, of its own."""
    names = ("set", "set (2)", "set")
    whole, _ = evaluation(tmp_path / "report", tmp_path / "cache").run(
        [(name, SceneSet(["natural"], pictures=1, seed=seed)) for seed, name in enumerate(names, start=5)]
    )
    assert list(whole["shifts"]) == ["set (2)", "set (3)"]
    assert len(list((tmp_path / "report" / "parts").glob("*-judgement.json"))) == 3


def test_too_few_for_a_section(tmp_path: Path) -> None:
    """Where a section cannot be measured on so few pictures the report says why, and has the rest."""
    work = evaluation(tmp_path / "report", tmp_path / "cache", sections=("layers",))
    whole, _ = work.run([("natural", SceneSet(["natural"], pictures=1, seed=5))])
    (layers,) = [one for one in whole["verdicts"] if one["id"] == "layers"]
    assert (layers["verdict"], whole["layers"]["too_few"]) == ("cannot conclude", layers["because"])
    assert layers["because"] in page(whole)
    assert whole["questions"] > 0


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished before a kill is not done again; the report is that of a run without one."""
    judged: list[str] = []

    def judge(*args: Any, **options: Any) -> dict[str, Any]:
        judged.append(args[3])
        if killing and len(judged) == 2:
            raise KeyboardInterrupt
        return judge_set(*args, **options)

    killing = True
    monkeypatch.setattr(evaluate, "judge_set", judge)
    data = scenes("natural", "noise", "density")
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path / "report", tmp_path / "cache").run(data)
    assert judged == ["natural", "noise"]
    killing = False
    judged.clear()
    resumed = evaluation(tmp_path / "report", tmp_path / "cache").run(data)
    assert judged == ["noise", "density"]
    assert resumed == evaluation(tmp_path / "fresh", tmp_path / "cache").run(data)
    assert not list((tmp_path / "report" / "parts").glob("*.part"))
    judged.clear()
    assert evaluation(tmp_path / "report", tmp_path / "cache").run(data) == resumed
    assert judged == []


def test_parts_of_another_proxy_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the proxy, another model or another order of the data sets is judged anew."""
    count = []
    monkeypatch.setattr(evaluate, "judge_set", lambda *args, **options: count.append(1) or judge_set(*args, **options))
    data = scenes("natural", "noise")
    evaluation(tmp_path / "report", tmp_path / "cache").run(data)
    other = folder_of(width=64)
    object.__setattr__(other, "version", "another")
    for changes in ({"folders": {"proxy": other}}, {"model": "renamed"}):
        count.clear()
        evaluation(tmp_path / "report", tmp_path / "cache", **changes).run(data)
        assert len(count) == 2


def test_never_right(made_up: Labels, calibrated: ProxyFolder) -> None:
    """Where every answer is wrong there is no AUROC to give, and the report says null instead of NaN."""
    judged = judge_set(with_right(made_up, lambda row: False), calibrated, GRID, "wrong")
    json.dumps(judged, allow_nan=False)
    found = judged["part"]
    assert found["accuracy"]["all"]["rate"] == 0.0
    own = found["confidence"]["fastrm"]
    assert own["auroc"] is own["auroc_ci95"] is own["prr"] is own["spearman"] is own["p"] is None
    assert not own["conclusive"]
    assert found["flags"]["of_right"] == {"n": 0, "rate": None, "ci95": None}


def test_scores_are_the_labels(made_up: Labels, found: dict[str, Any]) -> None:
    """Accuracy and the AUROC of the token probability are those of the facts, counted here pair by pair."""
    right = np.array([facts.right for facts in made_up.facts])
    assert found["accuracy"]["all"]["rate"] == pytest.approx(right.mean())
    assert found["accuracy"]["by_group"]["color"]["n"] == 100
    for name, sign in (("token_probability", 1), ("token_entropy", -1)):
        score = sign * np.array([facts.numbers[name] for facts in made_up.facts])
        pairs = score[right][:, None] > score[~right][None, :]
        assert found["confidence"][name]["auroc"] == pytest.approx(pairs.mean())
    assert found["confidence"]["token_probability"]["wrong"] == int((~right).sum())
    assert set(found["confidence"]) == UNCALIBRATED | {"p_ik", "grounding", "evidence"}
    assert set(found["auroc_difference"]) == set(found["confidence"]) - {"fastrm"}


def test_confidence_is_what_is_served(made_up: Labels, calibrated: ProxyFolder, found: dict[str, Any]) -> None:
    """The judged confidence, and so the flags, are those that the scorer gives for the same states."""
    scorer, served = Scorer(calibrated), []
    for row, facts in enumerate(made_up.facts):
        one = made_up.batch([row])
        ((relevance, signals),) = scorer.measure(one.states, one.image, one.valid).rows()
        served.append(scorer.conclude(relevance, GRID.grids(9, []), signals, facts.numbers).confidence)
    right = np.array([facts.right for facts in made_up.facts])
    confidence = np.array(served)
    assert found["calibrated"]
    assert found["confidence"]["fastrm"]["brier"] == pytest.approx(np.mean((confidence - right) ** 2), abs=1e-4)
    assert found["confidence"]["fastrm"]["auroc"] > 0.75
    assert calibrated.confidence is not None
    low = confidence < calibrated.confidence.threshold
    assert found["flags"]["threshold"] == calibrated.confidence.threshold
    assert found["flags"]["of_wrong"]["rate"] == pytest.approx(low[~right].mean())
    assert found["flags"]["of_right"]["rate"] == pytest.approx(low[right].mean())
    assert found["flags"]["of_wrong"]["n"] == int((~right).sum())


def test_samples_are_scored_where_they_are_known(made_up: Labels, calibrated: ProxyFolder) -> None:
    """Sampling consistency of some questions is judged on those, by question id."""
    sampled = {"consistency": {facts.id: float(facts.right) for facts in made_up.facts[:100]}, "samples": 10}
    part = judge_set(made_up, calibrated, GRID, "made-up", sampled=sampled)["part"]
    own = part["confidence"]["sampling"]
    assert (own["n"], own["auroc"], own["prr"]) == (100, 1.0, 1.0)
    assert part["auroc_difference"]["sampling"]["ci95"][1] < 0
    assert "sampling" in part["curves"]["risk_coverage"]
    assert part["sampling"] == {"samples": 10}


def test_threshold_is_carried(made_up: Labels, calibrated: ProxyFolder, judged: dict[str, Any], tmp_path: Path) -> None:
    """What flags 10 % on the first data set is applied as it is to the next, wrong answers counted by hand."""
    own = judged["part"]["threshold"]["token_probability"]
    assert own["flag_rate"]["rate"] == pytest.approx(0.1, abs=0.01)
    other = made_up_labels(tmp_path / "other.safetensors", pictures=40, questions=3, seed=2)
    carried = judge_set(other, calibrated, GRID, "other", thresholds=judged["thresholds"])["part"]["threshold"]
    low = np.array([facts.numbers["token_probability"] < own["threshold"] for facts in other.facts])
    wrong = np.array([not facts.right for facts in other.facts])
    found = carried["token_probability"]
    assert found["threshold"] == own["threshold"]
    assert found["flag_rate"]["rate"] == pytest.approx(low.mean())
    assert found["precision"]["rate"] == pytest.approx(wrong[low].mean())
    assert found["lift"]["difference"] == pytest.approx(wrong[low].mean() - wrong.mean())
    assert set(carried) == {"map_entropy", "token_probability"}


def test_curves_are_thin(found: dict[str, Any]) -> None:
    """No curve has more than 50 points, and their ends are those of the data."""
    curves = found["curves"]
    for own in curves["risk_coverage"].values():
        assert 2 < len(own["coverage"]) == len(own["risk"]) <= 50
        assert own["coverage"][-1] == 1.0
        assert own["risk"][-1] == pytest.approx(1 - found["accuracy"]["all"]["rate"], abs=1e-5)
    assert 2 < len(curves["precision_recall"]["recall"]) == len(curves["precision_recall"]["precision"]) <= 50
    assert curves["precision_recall"]["recall"][-1] == 1.0
    histogram = curves["entropy_histogram"]
    assert sum(histogram["right"]) + sum(histogram["wrong"]) == found["questions"]
    assert sum(bin_["n"] for bin_ in curves["reliability"]["fastrm"]) == found["questions"]


def test_proxies_side_by_side(made_up: Labels) -> None:
    """A shuffled proxy beside a good one: paired differences far above 0, and no gain over the base rate."""
    others = {"shuffled": planted_folder("shuffled"), "same": planted_folder("good")}
    found = judge_set(made_up, planted_folder("good"), GRID, "made-up", others=others)["part"]
    assert found["fidelity"]["auprc"] > 0.8
    assert found["fidelity"]["ci95"]["auprc_gain"][0] > 0.5
    shuffled = found["proxies"]["shuffled"]
    assert shuffled["difference"]["auprc"]["ci95"][0] > 0.4
    assert shuffled["fidelity"]["ci95"]["auprc_gain"][0] < 0.05
    assert shuffled["fidelity"]["ci95"]["accuracy_gain"][1] < 0
    assert found["proxies"]["same"]["difference"]["f1"] == {"difference": 0.0, "ci95": [0.0, 0.0]}
    assert shuffled["pointing"]["hit_rate"] < found["pointing"]["proxy"]["hit_rate"]


def test_constant_map(made_up: Labels) -> None:
    """A map that is the same everywhere has entropy 1 for every answer, and says nothing."""
    judged = judge_set(made_up, planted_folder("constant"), GRID, "made-up")
    own = judged["part"]["confidence"]["map_entropy"]
    assert judged["thresholds"]["map_entropy"] == pytest.approx(1.0)
    assert (own["auroc"], own["auroc_ci95"], own["p"]) == (0.5, [0.5, 0.5], 1.0)
    assert own["prr"] == pytest.approx(0.0, abs=1e-9)


def test_generalisation(made_up: Labels, tmp_path: Path) -> None:
    """A data set on which the answers are worse shows it with an interval; the same kind of data does not."""
    again = made_up_labels(tmp_path / "again.safetensors", pictures=50, questions=4, seed=7)
    worse = with_right(again, lambda row: row % 3 == 0)
    folder = planted_folder("good")
    parts = [judge_set(labels, folder, GRID, name) for labels, name in ((made_up, "a"), (again, "b"), (worse, "c"))]
    changes = assemble("m", {"proxy": folder}, parts)["generalisation"]
    low, high = changes["b"]["auprc"]["ci95"]
    assert low < 0 < high
    assert changes["c"]["answer_accuracy"]["difference"] == pytest.approx(
        parts[2]["part"]["accuracy"]["all"]["rate"] - parts[0]["part"]["accuracy"]["all"]["rate"]
    )
    assert changes["c"]["answer_accuracy"]["ci95"][1] < 0
    figures = {"auprc", "auprc_within", "f1", "patch_accuracy", "pointing", "answer_accuracy", "auroc"}
    assert set(changes["c"]) == figures | {"pictures_shared"}
    assert changes["b"]["pictures_shared"] == 0  # of one name, but nobody said that they are the same


def test_shared_pictures_are_paired(made_up: Labels, tmp_path: Path) -> None:
    """Where two data sets have the same pictures the change is that of each picture: none where nothing changes."""
    folder = planted_folder("good")
    origins = [one.picture_id for one in made_up.facts]
    first, same = (judge_set(made_up, folder, GRID, name, origins=origins) for name in ("a", "b"))
    apart = judge_set(made_up, folder, GRID, "c")
    flipped = with_right(made_up, lambda row: made_up.facts[row].right and row % 20 > 0)
    slightly = [judge_set(flipped, folder, GRID, "d", origins=own) for own in (origins, None)]
    changes = assemble("m", {"proxy": folder}, [first, same, apart])["generalisation"]
    assert (changes["b"]["pictures_shared"], changes["c"]["pictures_shared"]) == (50, 0)
    for metric in ("auprc", "auprc_within", "f1", "patch_accuracy", "pointing", "answer_accuracy", "auroc"):
        assert changes["b"][metric]["ci95"] == [0.0, 0.0]
    for metric in ("auprc", "f1", "patch_accuracy", "answer_accuracy", "auroc"):
        low, high = changes["c"][metric]["ci95"]
        assert low < 0 < high
    paired, independent = (
        assemble("m", {"proxy": folder}, [first, one])["generalisation"]["d"]["answer_accuracy"] for one in slightly
    )
    assert paired["difference"] == independent["difference"] < 0
    assert paired["ci95"][1] < 0 < independent["ci95"][1]


def test_data_sets_say_what_they_share(tmp_path: Path) -> None:
    """Scenes of one seed and place, and files of one name and content, are shared; others are not."""
    write_pope(tmp_path / "one", "natural", pictures=3, seed=5)
    write_pope(tmp_path / "other", "natural", pictures=4, seed=6)
    images = tmp_path / "one" / "val2014"
    files = {split: tmp_path / "one" / f"coco_pope_{split}.json" for split in ("random", "popular")}
    data: list[tuple[str, Dataset]] = [
        ("natural", SceneSet(["natural"], pictures=4, seed=5)),
        ("noise", SceneSet(["noise"], pictures=3, seed=5)),
        ("other seed", SceneSet(["noise"], pictures=3, seed=6)),
    ]
    whole, _ = evaluation(tmp_path / "scenes", tmp_path / "cache").run(data)
    changes = whole["generalisation"]
    assert [changes[name]["pictures_shared"] for name in ("noise", "other seed")] == [3, 0]
    data = [(split, POPE(path, images)) for split, path in files.items()]
    data += [("other", POPE(tmp_path / "other" / "coco_pope_random.json", tmp_path / "other" / "val2014"))]
    whole, _ = evaluation(tmp_path / "pope", tmp_path / "cache").run(data)
    shared = len({one.picture_id for one in data[0][1]} & {one.picture_id for one in data[1][1]})
    assert shared > 0
    assert [whole["generalisation"][name]["pictures_shared"] for name in ("popular", "other")] == [shared, 0]


def test_boxes_of_few_pictures_say_nothing_of_a_change(made_up: Labels) -> None:
    """Where few questions have boxes the change of the pointing game has no interval, as on fewer pictures."""
    few = with_right(made_up, lambda row: made_up.facts[row].right)
    few.facts = [replace(one, boxes=one.boxes if row < 8 else ()) for row, one in enumerate(made_up.facts)]
    folder = planted_folder("good")
    parts = [judge_set(labels, folder, GRID, name) for labels, name in ((made_up, "a"), (few, "b"))]
    change = assemble("m", {"proxy": folder}, parts)["generalisation"]["b"]
    assert change["pointing"]["difference"] is not None
    assert change["pointing"]["ci95"] is None
    assert change["auprc"]["ci95"] is not None


@pytest.fixture(scope="module")
def explained(
    embedded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Labels, ProxyFolder, PatchLayout]:
    """Natural scenes as the embedded model and its teacher see them, with the proxy of the package."""
    model, processor = embedded
    data = SceneSet(["natural"], pictures=24, questions=2)
    labels = make_labels(Asker(model, processor), data, tmp_path_factory.mktemp("explained"))
    return labels, load_proxy(PROXY_FOLDER), layout_for(model.config, processor)


@pytest.mark.parametrize("worth", ["served", "level", "shuffled"])
def test_maps_without_space_fail_fidelity(
    explained: tuple[Labels, ProxyFolder, PatchLayout], worth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real scenes the proxy finds the relevant patches; level in every question, or shuffled in it, it does not."""
    labels, folder, layout = explained
    rng = np.random.default_rng(0)
    teacher = teacher_maps(labels, range(len(labels)))

    def spoilt(*args: Any) -> Seen:
        seen = see(*args)
        maps = {
            "served": seen.relevance,
            "level": [np.full_like(own, own.mean()) for own in teacher],  # it knows how much is relevant, and not where
            "shuffled": [rng.permutation(own) for own in seen.relevance],
        }
        return replace(seen, relevance=maps[worth])

    monkeypatch.setattr(judgement, "see", spoilt)
    report = assemble("m", {"proxy": folder}, [judge_set(labels, folder, layout, "natural")])
    (found,) = [one["verdict"] for one in report["verdicts"] if one["id"] == "thresholds"]
    bounds = report["fidelity"]["ci95"]
    if worth == "served":
        assert found == "holds"
        assert bounds["auprc_within_gain"][0] > 0.6
    else:
        assert found in ("does not hold", "cannot conclude")
        assert bounds["auprc_within_gain"][1] < 0.05  # of 48 questions
    if worth == "level":
        assert found == "does not hold"
        assert bounds["auprc_gain"][0] > 0.02  # pooled it seems to know something


def test_generalisation_has_both_numbers(made_up: Labels, judged: dict[str, Any], calibrated: ProxyFolder) -> None:
    """Beside what another data set has above the first stands what it has."""
    other = judge_set(with_right(made_up, lambda row: row % 2 == 0), calibrated, GRID, "half")
    changes = assemble("m", {"proxy": calibrated}, [judged, other])["generalisation"]["half"]
    assert changes["answer_accuracy"]["value"] == 0.5
    assert changes["answer_accuracy"]["difference"] == pytest.approx(0.5 - judged["part"]["accuracy"]["all"]["rate"])
    assert changes["auprc"]["value"] == other["part"]["fidelity"]["auprc"]


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
    """Two questions of each picture are compared: mean absolute difference and how many were equal."""
    maps = [("a", 0.25), ("a", 0.75), ("b", 0.5), ("b", 0.5), ("c", 0.1), ("d", 0.0), ("a", 1.0), ("d", 1.0)]
    labels = targets(tmp_path / "labels.safetensors", maps)
    part = judge_set(labels, folder_of(), FixedGridLayout(4, 2, 2), "by hand")["part"]
    teacher = part["question_sensitivity"]["teacher"]
    assert (teacher["pairs"], teacher["identical"], teacher["ci95"]) == (3, 1, None)
    assert teacher["mean_absolute_difference"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    proxy = {"pairs": 3, "mean_absolute_difference": 0.0, "ci95": None, "identical": 3}
    assert part["question_sensitivity"]["proxy"] == proxy


def test_question_sensitivity_takes_a_hundred_pictures(tmp_path: Path) -> None:
    """At most 100 pairs are compared; without a picture of two questions nothing is claimed."""
    many = targets(tmp_path / "many.safetensors", [(str(n // 2), float(n % 2)) for n in range(240)])
    found = judge_set(many, folder_of(), FixedGridLayout(4, 2, 2), "many")["part"]["question_sensitivity"]["teacher"]
    assert (found["pairs"], found["mean_absolute_difference"], found["ci95"]) == (100, 1.0, [1.0, 1.0])
    single = targets(tmp_path / "single.safetensors", [(str(n), 0.5) for n in range(4)])
    part = judge_set(single, folder_of(), FixedGridLayout(4, 2, 2), "single")["part"]
    nothing = {"pairs": 0, "mean_absolute_difference": None, "ci95": None, "identical": None}
    assert part["question_sensitivity"] == {"proxy": nothing, "teacher": nothing}
    assert part["pointing"]["proxy"]["n"] == 0
