"""The report as people meet it: verdicts that the numbers decide, a page that stands alone, tables that fit."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import escape
from rich.console import Console

from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab.judgement import judge_set
from fastrm_monitor.lab.printing import print_report
from fastrm_monitor.lab.report import plots
from fastrm_monitor.lab.report.contents import assemble
from fastrm_monitor.lab.report.decisions import above, all_hold, between
from fastrm_monitor.lab.report.page import page
from fastrm_monitor.lab.report.parts import Parts
from fastrm_monitor.lab.report.verdicts import verdicts
from fastrm_monitor.scoring.patches import FixedGridLayout
from tests.planted import planted_folder
from tests.tiny import made_up_labels

GRID = FixedGridLayout(4, 3, 3)
HOSTILE = "<script>alert('$x$ & __y__')</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good proxy, a shuffled one beside it, two data sets of one kind."""
    folder = tmp_path_factory.mktemp("labels")
    folders = {"ours": planted_folder("good"), "paper": planted_folder("shuffled")}
    parts: list[dict[str, Any]] = []
    for number, name in enumerate(("natural", "again")):
        labels = made_up_labels(folder / f"{name}.safetensors", pictures=60, questions=4, seed=number)
        carried = parts[0]["thresholds"] if parts else None
        others = {"paper": folders["paper"]}
        parts.append(judge_set(labels, folders["ours"], GRID, name, others=others, thresholds=carried))
    return assemble("model", folders, parts)


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return page(report)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report on three samples and a shift of three."""
    path = tmp_path_factory.mktemp("few")
    labels = [made_up_labels(path / f"{n}.safetensors", pictures=3, questions=1, seed=n) for n in range(2)]
    folder, other = planted_folder("good"), planted_folder("shuffled")
    parts = [judge_set(one, folder, GRID, name, others={"b": other}) for one, name in zip(labels, "xy", strict=True)]
    return assemble("model", {"a": folder, "b": other}, parts)


def verdict(report: dict[str, Any], name: str) -> str:
    (found,) = [one for one in verdicts(report) if one["id"] == name]
    assert found["because"]
    return str(found["verdict"])


def said(report: dict[str, Any], name: str) -> str:
    (found,) = [one for one in verdicts(report) if one["id"] == name]
    return str(found["because"])


def changed(report: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    """A copy of the report with one number planted."""
    made = copy.deepcopy(report)
    place = made
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return made


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_intervals_decide() -> None:
    """On the right side it holds, on the other it does not, across it nothing is concluded, and none is none."""
    assert [above(bounds, 0.0) for bounds in ([0.1, 0.2], [-0.2, -0.1], [-0.1, 0.1], [0.0, 0.0], None)] == [
        "holds",
        "does not hold",
        "cannot conclude",
        "does not hold",
        "cannot conclude",
    ]
    assert [between(bounds, 0.05, 0.2) for bounds in ([0.06, 0.1], [0.3, 0.4], [0.01, 0.1], None)] == [
        "holds",
        "does not hold",
        "cannot conclude",
        "cannot conclude",
    ]
    assert all_hold(["holds", "holds"]) == "holds"
    assert all_hold(["holds", "cannot conclude"]) == all_hold([]) == "cannot conclude"
    assert all_hold(["holds", "cannot conclude", "does not hold"]) == "does not hold"


def test_every_item_of_the_summary_has_a_verdict(report: dict[str, Any]) -> None:
    """Five claims, three experiments, questions, signatures and checks each; all with a section and a reason."""
    found = report["verdicts"]
    kinds = [one["kind"] for one in found]
    assert [kinds.count(kind) for kind in dict.fromkeys(kinds)][:5] == [5, 3, 3, 3, 3]
    assert found == verdicts(report)
    assert len({one["id"] for one in found}) == len(found)
    assert {one["verdict"] for one in found} <= {"holds", "does not hold", "cannot conclude", "not measured"}
    assert all(one["because"].endswith(".") for one in found)
    assert [one["id"] for one in found if not one["welcome"]] == ["perturbation_fails", "entropy_fails", "falls"]


def test_left_out_sections_are_not_measured(report: dict[str, Any]) -> None:
    """What was not asked has no verdict, whatever the rest says."""
    for name in ("time", "memory", "perturbation", "perturbation_fails", "failure_modes", "layers"):
        assert verdict(report, name) == "not measured"
    alone = {**report, "shifts": {}, "generalisation": {}, "proxies": {}}
    for name in ("no_loss", "still_finds", "falls", "small_loss", "carries_over", "trade_off", "confidence_shifted"):
        assert verdict(alone, name) == "not measured"


def test_good_proxy(report: dict[str, Any]) -> None:
    """A proxy that knows the relevant patches passes fidelity on both data sets, with its numbers in the reason."""
    assert verdict(report, "accuracy") == verdict(report, "thresholds") == verdict(report, "still_finds") == "holds"
    one = report["fidelity"]
    for number in (one["thresholds"]["0.5"]["accuracy"], one["all_negative_accuracy"], one["ci95"]["accuracy_gain"][0]):
        assert f"{number:.3f}" in said(report, "accuracy")
    for name in ("auprc", "auprc_within"):
        assert f"{one[name]:.3f} [{one['ci95'][name][0]:.3f}" in said(report, "thresholds")


def test_shuffled_patches_fail_fidelity(report: dict[str, Any]) -> None:
    """The same probabilities on other patches: neither accuracy nor AUPRC is better than knowing nothing."""
    shuffled = {**report, "fidelity": report["proxies"]["paper"]["fidelity"]}
    assert verdict(shuffled, "accuracy") == "does not hold"
    assert verdict(shuffled, "thresholds") in ("does not hold", "cannot conclude")
    assert shuffled["fidelity"]["ci95"]["auprc_within_gain"][1] < 0.1


def test_pooled_auprc_does_not_decide(report: dict[str, Any]) -> None:
    """A map that gains over all patches and nothing within questions finds no patch, here or on other data."""
    for path, name in ((("fidelity",), "thresholds"), (("shifts", "again", "fidelity"), "still_finds")):
        for bounds, expected in (([-0.02, 0.0], "does not hold"), ([-0.01, 0.02], "cannot conclude")):
            assert verdict(changed(report, *path, "ci95", "auprc_within_gain", value=bounds), name) == expected
    none = changed(report, "fidelity", "auprc_within", value=None)
    assert verdict(none, "thresholds") == "cannot conclude"
    assert "No question has both" in said(none, "thresholds")


def test_ranking_stands_in_page_and_tables(report: dict[str, Any], html: str) -> None:
    """AUPRC within questions stands beside the pooled one, for every proxy, with what a random order reaches."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    for one in (report["fidelity"], report["proxies"]["paper"]["fidelity"]):
        for text in (out.getvalue(), html):
            for name in ("auprc", "auprc_within"):
                low, high = one["ci95"][name]
                assert f"{one[name]:.3f} [{low:.3f}, {high:.3f}]" in text
            assert f"{one['chance_within']:.3f}" in text


@pytest.mark.parametrize("width", [80, 120])
def test_names_stay_whole_on_a_narrow_screen(report: dict[str, Any], width: int) -> None:
    """Scores and data sets can be read at 80 columns: what a number's interval takes goes below it."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for name in ("token_entropy", "map_entropy", "natural, paper", "again"):
        assert any(re.match(rf"{name} *│", line) for line in lines), name
    low, high = report["fidelity"]["ci95"]["auprc"]
    number, bounds = f"{report['fidelity']['auprc']:.3f}", f"[{low:.3f}, {high:.3f}]"
    together = [line for line in lines if f"{number} {bounds}" in line]
    below = [line for line, after in pairwise(lines) if number in line and bounds in after and bounds not in line]
    assert bool(together) == (width == 120)
    assert bool(below) == (width == 80)


def test_three_samples_conclude_nothing(few: dict[str, Any]) -> None:
    """On three samples every verdict is that it cannot conclude, or that it was not measured, and the page says so."""
    assert {one["verdict"] for one in few["verdicts"]} == {"cannot conclude", "not measured"}
    assert "too few to conclude" in said(few, "accuracy")
    html = page(few)
    assert html.count("cannot conclude") > 40
    assert "nan" not in html.lower().replace("nano", "")
    out = io.StringIO()
    print_report(few, Console(file=out, width=100))
    assert "nan" not in out.getvalue()
    assert out.getvalue().count("too few") > 20


def test_losses_decide_generalisation(report: dict[str, Any]) -> None:
    """A loss whose interval lies below 0 speaks against the claim; a small one is allowed where the claim says so."""
    path = ("generalisation", "again")
    assert verdict(report, "small_loss") in ("holds", "cannot conclude")
    lost = changed(report, *path, "auprc_within", value={"difference": -0.3, "ci95": [-0.4, -0.2]})
    assert (verdict(lost, "small_loss"), verdict(lost, "falls")) == ("does not hold", "holds")
    assert "-0.300 [-0.400, -0.200]" in said(lost, "falls")
    little = changed(report, *path, "auprc_within", value={"difference": -0.02, "ci95": [-0.04, 0.0]})
    assert (verdict(little, "small_loss"), verdict(little, "falls")) == ("holds", "does not hold")
    gained = {"difference": 0.1, "ci95": [0.05, 0.15]}
    both = changed(changed(report, *path, "f1", value=gained), *path, "patch_accuracy", value=gained)
    assert verdict(both, "no_loss") == "holds"
    lower = {"difference": -0.1, "ci95": [-0.2, -0.05]}
    assert verdict(changed(both, *path, "f1", value=lower), "no_loss") == "does not hold"


@pytest.mark.parametrize(
    ("bounds", "p", "expected"),
    [
        ([0.6, 0.7], 0.01, "holds"),
        ([0.51, 0.7], 0.2, "cannot conclude"),  # one of many scores, after Holm
        ([0.45, 0.7], 0.4, "cannot conclude"),
        ([0.45, 0.54], 1.0, "does not hold"),
        ([0.3, 0.4], 0.01, "does not hold"),
        (None, None, "cannot conclude"),
    ],
)
def test_entropy_needs_interval_and_correction(report: dict[str, Any], bounds: Any, p: Any, expected: str) -> None:
    """Entropy counts where its AUROC is above 1/2 and stays so after correcting for the number of scores."""
    own = {**report["confidence"]["map_entropy"], "auroc_ci95": bounds, "p_holm": p}
    planted = changed(report, "confidence", "map_entropy", value=own)
    assert verdict(planted, "entropy") == expected
    opposite = {"holds": "does not hold", "does not hold": "holds"}.get(expected, expected)
    assert verdict(planted, "entropy_fails") == opposite


def test_threshold_carries_over(report: dict[str, Any]) -> None:
    """It does where it flags between half and twice as many, and wrong answers among them more often than among all."""
    path = ("shifts", "again", "threshold", "map_entropy")
    for bounds, lift, expected in (
        ([0.07, 0.15], [0.1, 0.3], "holds"),
        ([0.3, 0.5], [0.1, 0.3], "does not hold"),
        ([0.01, 0.15], [0.1, 0.3], "cannot conclude"),
        ([0.07, 0.15], [-0.1, 0.1], "cannot conclude"),  # as many answers, but any
        ([0.07, 0.15], [-0.2, -0.1], "does not hold"),
    ):
        planted = changed(report, *path, "flag_rate", value={"n": 240, "rate": 0.1, "ci95": bounds})
        planted = changed(planted, *path, "lift", value={"difference": 0.2, "ci95": lift})
        assert verdict(planted, "carries_over") == expected
    base = 1 - report["shifts"]["again"]["accuracy"]["all"]["rate"]
    assert f"all answers: {base:.3f}" in said(report, "carries_over")


def test_trade_off_goes_by_size(report: dict[str, Any]) -> None:
    """The larger proxy must be the better one; two of one size show nothing."""
    assert verdict(report, "trade_off") == "cannot conclude"
    larger = changed(report, "proxies_compared", "ours", "parameters", value=1000)
    assert verdict(larger, "trade_off") == "holds"
    smaller = changed(report, "proxies_compared", "paper", "parameters", value=1000)
    assert verdict(smaller, "trade_off") == "does not hold"


def test_confidence_against_every_other_score(report: dict[str, Any]) -> None:
    """One score that is clearly better is enough against ours."""
    good = copy.deepcopy(report)
    for part in (good, good["shifts"]["again"]):
        for own in part["auroc_difference"].values():
            own.update(difference=0.1, ci95=[0.05, 0.15])
    assert verdict(good, "confidence") == verdict(good, "confidence_shifted") == "holds"
    better = {**good["auroc_difference"]["map_max"], "difference": -0.1, "ci95": [-0.15, -0.05]}
    assert verdict(changed(good, "auroc_difference", "map_max", value=better), "confidence") == "does not hold"


def masked(bounds: list[float] | None, on_boxes: list[float] | None = None) -> dict[str, Any]:
    """A perturbation section whose proxy's area lies so far from that of the random order."""
    area = {order: {"n": 200, "mean": 0.5, "ci95": [0.4, 0.6]} for order in ("proxy", "teacher", "random", "inverse")}
    number = {"n": 60, "mean": 0.3, "ci95": [0.2, 0.4]}
    side = {
        "answers": 60,
        "on_boxes": {"proxy": number, "teacher": number},
        "boxes": number,
        "mass": {"proxy": number, "teacher": number},
        "changed": {"n": 30, "rate": 0.25, "ci95": [0.1, 0.4]},
    }
    orders = ("proxy", "teacher")
    apart = {name: {"difference": -0.2, "ci95": on_boxes} for name in orders}
    return {
        "questions": 200,
        "pictures": 60,
        "levels": [],
        "accuracy": {order: [] for order in area},
        "changed": {order: [] for order in area},
        "groups": {},
        "area": area,
        "difference": {f"{one} - random": {"difference": -0.1, "ci95": bounds, "p": 0.03} for one in orders},
        "failures": {"count": {"wrong": side, "right": side, "difference": {"on_boxes": apart, "mass": apart}}},
    }


@pytest.mark.parametrize(
    ("bounds", "expected", "signature"),
    [
        ([-0.2, -0.05], "holds", "does not hold"),  # less accuracy under the curve: the masked patches mattered
        ([0.05, 0.2], "does not hold", "holds"),
        ([-0.1, 0.1], "cannot conclude", "cannot conclude"),
        (None, "cannot conclude", "cannot conclude"),
    ],
)
def test_perturbation_is_against_random(report: dict[str, Any], bounds: Any, expected: str, signature: str) -> None:
    """Masking by the proxy's order must leave less accuracy than masking at random."""
    planted = {**report, "perturbation": masked(bounds)}
    assert (verdict(planted, "perturbation"), verdict(planted, "perturbation_fails")) == (expected, signature)


def test_perturbation_on_other_data(report: dict[str, Any]) -> None:
    """Every other data set must show it; one of too few questions leaves it open, and both stand on the page."""
    assert verdict(report, "perturbation_shifted") == "not measured"
    path = ("shifts", "again", "perturbation")
    few = {"too_few": "There are too few questions."}
    for found, expected in (
        (masked([-0.2, -0.05]), "holds"),
        (masked([0.05, 0.2]), "does not hold"),
        (few, "cannot conclude"),
    ):
        assert verdict(changed(report, *path, value=found), "perturbation_shifted") == expected
    assert "again: There are too few questions." in said(changed(report, *path, value=few), "perturbation_shifted")


def test_pope_stands_in_page_and_tables(report: dict[str, Any]) -> None:
    """POPE's measures of each split, with their intervals."""
    one = {"n": 90, "rate": 0.8125, "ci95": [0.7, 0.9]}
    rates = dict.fromkeys(("accuracy", "precision", "recall", "yes_rate"), one)
    measures = {"n": 90, **rates, "f1": {"value": 0.6421, "ci95": [0.5, 0.75]}}
    planted = changed(report, "shifts", "again", "pope", value={"popular": measures})
    out = io.StringIO()
    print_report(planted, Console(file=out, width=100))
    for text in (page(planted), out.getvalue()):
        assert "popular" in text
        assert "0.642 [0.500, 0.750]" in text
        assert "0.812 [0.700, 0.900]" in text


def test_failure_modes(report: dict[str, Any]) -> None:
    """The map lies less on what was asked about where the answer is wrong, or it does not; few answers say nothing."""
    for bounds, expected in (([-0.3, -0.1], "holds"), ([0.1, 0.3], "does not hold"), (None, "cannot conclude")):
        assert verdict({**report, "perturbation": masked([-0.2, -0.1], bounds)}, "failure_modes") == expected


@pytest.mark.parametrize("unknown", ["without boxes", "no wrong answer", "too few"])
def test_undecided_failure_modes_are_named(report: dict[str, Any], unknown: str) -> None:
    """One mode of which nothing can be said leaves the claim about each of them open, and the reason names it."""
    found = masked([-0.2, -0.1], [-0.3, -0.1])
    mode = copy.deepcopy(found["failures"]["count"])
    mode["difference"]["on_boxes"]["proxy"] = {"difference": None, "ci95": None}
    mode["wrong"]["on_boxes"]["proxy"] = {"n": 0, "mean": None, "ci95": None}
    if unknown == "no wrong answer":
        mode["wrong"]["answers"] = 0
    elif unknown == "too few":
        mode["wrong"]["on_boxes"]["proxy"]["n"] = 5
        mode["difference"]["on_boxes"]["proxy"]["difference"] = 0.1
    found["failures"]["hallucinated"] = mode
    planted = {**report, "perturbation": found}
    assert verdict(planted, "failure_modes") == "cannot conclude"
    reason = {
        "without boxes": "hallucinated (60 wrong answers): cannot be measured, since no box is known",
        "no wrong answer": "hallucinated (0 wrong answers): not seen here",
        "too few": "hallucinated (60 wrong answers): +0.100 (too few to conclude)",
    }
    assert reason[unknown] in said(planted, "failure_modes")
    found["failures"]["count"]["difference"]["on_boxes"]["proxy"]["ci95"] = [0.1, 0.2]
    assert verdict(planted, "failure_modes") == "does not hold"


def test_what_the_evidence_cites_is_printed(report: dict[str, Any]) -> None:
    """The areas and their differences, time and memory of a map beside both teachers', and the layers are printed."""
    planted = {**report, "perturbation": masked([-0.15, -0.05]), "cost": cost_of(0.954, [0.951, 0.957], 7 * 2**20)}
    final = {key: {"value": 0.654, "ci95": [0.5, 0.7]} for key in ("auprc", "auprc_within", "f1")}
    other = {**final, "difference": {"auprc_within": {"difference": 0.123, "ci95": [0.05, 0.2]}}}
    counts = {"questions": 100, "training_questions": 400, "chance_within": 0.169}
    planted["layers"] = {**counts, "choices": {"final": final, "layer 2": other}}
    planted["cost"]["less_time_than_row"] = {"ours": {"value": 0.876, "ci95": [0.871, 0.882]}}
    planted["shifts"] = {"again": {**report["shifts"]["again"], "perturbation": {"too_few": "Too few questions."}}}
    out = io.StringIO()
    print_report(planted, Console(file=out, width=100))
    text = out.getvalue()
    assert text.count("0.500 [0.400, 0.600]") == 4
    for part in (
        *("-0.100 [-0.150, -0.050]", "95.40% [95.10%, 95.70%]", "87.60% [87.10%, 88.20%]", "Too few questions."),
        *("1.0 MiB of weights", "7.00", "0.654 [0.500, 0.700]", "+0.123 [+0.050, +0.200]"),
    ):
        assert part in " ".join(text.split()), part
    assert max(len(line) for line in text.splitlines()) <= 100


def cost_of(saved: float, bounds: list[float], teacher: int) -> dict[str, Any]:
    """A cost section of a proxy that saves so much time, and a teacher that has so many bytes alive."""
    variants = ("forward", "teacher_published", "teacher_row", "ours")
    figure = {"ours": {"value": saved, "ci95": bounds}}
    return {
        "device": "cpu",
        "prompt_tokens": 70,
        "seconds": {name: {"median": 0.5, "ci95": [0.4, 0.6]} for name in variants},
        "less_time_than_published": figure,
        "less_time_than_row": figure,
        "memory": {"weights": 2**20, "alive": {**dict.fromkeys(variants, 2**20), "teacher_published": teacher}},
        "extra_memory_of_forward": {"ours": {"bytes": 2**20}},
    }


def test_cost_against_the_papers_numbers(report: dict[str, Any]) -> None:
    """99.8 % of the time by its interval, 44.4 % of the memory with the weights on both sides: 3 MiB here."""
    for saved, bounds, expected in (
        (0.999, [0.9985, 0.9995], "holds"),
        (0.99, [0.98, 0.995], "does not hold"),
        (0.998, [0.997, 0.999], "cannot conclude"),
    ):
        assert verdict({**report, "cost": cost_of(saved, bounds, 5 * 2**20)}, "time") == expected
    assert verdict({**report, "cost": cost_of(0.999, [0.998, 1.0], 5 * 2**20)}, "memory") == "holds"  # 3 of 6 MiB
    assert "50.0%" in said({**report, "cost": cost_of(0.999, [0.998, 1.0], 5 * 2**20)}, "memory")
    assert verdict({**report, "cost": cost_of(0.999, [0.998, 1.0], 4 * 2**20)}, "memory") == "does not hold"  # 3 of 5


@pytest.mark.parametrize("name", ["mean_map", "other_questions"])
def test_a_map_without_the_question_must_be_beaten(report: dict[str, Any], name: str) -> None:
    """Better than chance is not enough: what knows nothing of the question may be as good. None at all is said."""
    assert verdict(report, "thresholds") == "holds"
    level = {"n": 90, "auprc_within": 0.9, "difference": 0.0, "ci95": [-0.01, 0.02]}
    assert verdict(changed(report, "question_blind", name, value=level), "thresholds") == "cannot conclude"
    below = {**level, "difference": -0.1, "ci95": [-0.2, 0.0]}
    assert verdict(changed(report, "question_blind", name, value=below), "thresholds") == "does not hold"
    assert verdict(changed(report, "shifts", "again", "question_blind", name, value=below), "still_finds") == (
        "does not hold"
    )
    none = {"n": 0, "auprc_within": None, "difference": None, "ci95": None}
    without = changed(report, "question_blind", name, value=none)
    assert verdict(without, "thresholds") == "cannot conclude"
    assert "does not exist" in said(without, "thresholds")


def test_layers(report: dict[str, Any]) -> None:
    """The final states suffice unless another choice is clearly better by more than the margin."""

    def choices(bounds: list[float]) -> dict[str, Any]:
        final = {"auprc_within": {"value": 0.6, "ci95": [0.5, 0.7]}}
        other = {**final, "difference": {"auprc_within": {"difference": 0.0, "ci95": bounds}}}
        return {"questions": 100, "choices": {"final": final, "layer 2": other}}

    for bounds, expected in (([-0.2, 0.04], "holds"), ([0.1, 0.2], "does not hold"), ([-0.1, 0.2], "cannot conclude")):
        assert verdict({**report, "layers": choices(bounds)}, "layers") == expected


# --- the page ------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """What a browser would load, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = dict(attributes)
        self.tags.append(tag)
        self.ids += [own["id"]] if own.get("id") else []
        if tag == "a":
            self.links.append(own["href"] or "")
        elif tag == "svg":
            self.images.append({"alt": own.get("aria-label")})
        elif tag == "img":
            self.images.append({"alt": own.get("alt")})
        self.loads += [own[name] or "" for name in ("src", "srcset", "data") if name in own]
        self.loads += [own["href"] or "" for _ in [0] if tag == "link" and "href" in own]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.pop()


def test_page_stands_alone(html: str) -> None:
    """No script, font or picture from elsewhere; every link leads to a section; every picture says what it shows."""
    found = _Page(html)
    assert found.open == []
    assert not {"script", "link", "iframe", "object", "foreignobject"} & set(found.tags)
    assert all(load.startswith("data:image/png;base64,") for load in found.loads)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.images) >= 10
    assert all(image["alt"] for image in found.images)
    assert "prefers-color-scheme: dark" in html
    assert "#010203" not in html
    assert "currentColor" in html


def test_plots_are_whole_drawings(html: str, report: dict[str, Any]) -> None:
    """Each plot is well-formed XML and is drawn the same every time."""
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) >= 10
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert "<metadata" not in drawing
    assert plots.forest(report) in html


def test_page_has_the_numbers(html: str, report: dict[str, Any]) -> None:
    """Verdicts come first; every score of every data set stands there with its interval and n."""
    assert html.index('id="verdicts"') < html.index('id="fidelity"') < html.index('id="confidence"')
    for part in (report, report["shifts"]["again"]):
        for own in part["confidence"].values():
            low, high = own["auroc_ci95"]
            assert f"{own['auroc']:.3f} [{low:.3f}, {high:.3f}]" in html
        assert f"{part['confidence']['fastrm']['wrong']} of {part['questions']} answers wrong" in html
    for one in report["verdicts"]:
        assert html.count(one["verdict"]) > 0
    assert "240" in html


def test_page_escapes_what_comes_from_data(report: dict[str, Any]) -> None:
    """Names of data, kinds of questions, answers and paths cannot become markup, nor make a plot fail."""
    hostile = json.loads(json.dumps(report).replace("natural", HOSTILE.replace('"', "'")).replace("color", HOSTILE))
    hostile["model"] = hostile["proxy"]["path"] = HOSTILE
    hostile["verdicts"] = verdicts(hostile)
    example = {
        "question": HOSTILE,
        "answer": '"><img src=x onerror=alert(1)>',
        "right": False,
        "confidence": 0.5,
        "entropy": 0.9,
        "picture": "data:image/png;base64,AA",
        "proxy": "data:image/png;base64,AA",
        "teacher": "data:image/png;base64,AA",
    }
    html = page(hostile, [example])
    found = _Page(html)
    assert found.open == []
    assert "script" not in found.tags
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", html)
    assert len([load for load in found.loads if load]) == 3
    assert "&lt;script&gt;" in html
    print_report(hostile, Console(file=io.StringIO(), width=100))


def test_notes_stand_in_page_and_tables(report: dict[str, Any]) -> None:
    """Questions left out, and data that a proxy was made of, are said on the page and at the end of the tables."""
    gone = f"There is no picture 'p/[/b].png' in {HOSTILE}."
    planted = changed(report, "left_out", value={"questions": 298, "of": 398, "first": gone})
    planted = changed(planted, "shifts", "again", "left_out", value={"questions": 2, "of": 9, "first": ""})
    planted = changed(planted, "in_training", value={"pap[/b]er": {"pictures": 20, "of": 25}})
    expected = [
        f"natural: 298 of 398 questions were left out; first: {gone}",
        "natural: 20 of 25 pictures were used to train the proxy pap[/b]er: these figures say nothing about new "
        "pictures.",
        "again: 2 of 9 questions were left out.",
    ]
    html = page(planted)
    assert re.findall('<p class="bad" role="note"><strong>(.*?)</strong>', html) == [escape(one) for one in expected]
    said = io.StringIO()
    print_report(planted, Console(file=said, width=100))
    lines = said.getvalue().splitlines()
    assert [one for one in lines if "left out" in one or "used to train" in one] == expected


def test_nothing_to_note(report: dict[str, Any], html: str) -> None:
    """Where all questions have labels and the pictures are new, nothing is said."""
    nothing = {"questions": 0, "of": 240, "first": ""}
    for one in (html, page(changed(changed(report, "left_out", value=nothing), "in_training", value={}))):
        assert 'role="note"' not in one


def test_tables_fit_a_screen(report: dict[str, Any]) -> None:
    """At 100 columns no number is cut: each interval of the report stands in the tables whole."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    for part in (report, report["shifts"]["again"]):
        for name, own in part["confidence"].items():
            low, high = own["auroc_ci95"]
            assert f"{own['auroc']:.3f} [{low:.3f}, {high:.3f}]" in text, name
        for own in (part["accuracy"]["all"], part["threshold"]["map_entropy"]["flag_rate"]):
            assert f"{own['rate']:.3f} [{own['ci95'][0]:.3f}, {own['ci95'][1]:.3f}]" in text
        assert f"{part['fidelity']['base_rate']:.3f}" in text
    apart = report["auroc_difference"]["token_probability"]
    assert f"{apart['difference']:+.3f} [{apart['ci95'][0]:+.3f}, {apart['ci95'][1]:+.3f}]" in text
    assert text.count("does not hold") + text.count("holds") >= 3


# --- parts on disk -------------------------------------------------------------------------------------------------


def test_part_is_made_once(tmp_path: Path) -> None:
    """The same key gives what is kept; any other key, another section or another data set is made anew."""
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": [1.5, None, "é"], "count": len(made)}

    first = Parts(tmp_path / "parts", {"proxy": "a"})
    assert first.get("natural", "judgement", make, option=(1, 2)) == {"value": [1.5, None, "é"], "count": 1}
    assert Parts(tmp_path / "parts", {"proxy": "a"}).get("natural", "judgement", make, option=(1, 2))["count"] == 1
    assert first.get("natural", "cost", make, option=(1, 2))["count"] == 2
    assert first.get("noise", "judgement", make, option=(1, 2))["count"] == 3
    assert first.get("natural", "judgement", make, option=(1, 3))["count"] == 4
    assert Parts(tmp_path / "parts", {"proxy": "b"}).get("natural", "judgement", make, option=(1, 3))["count"] == 5
    assert {path.suffix for path in (tmp_path / "parts").iterdir()} == {".json"}


def test_spoilt_part_is_made_again(tmp_path: Path) -> None:
    """A part that is cut, empty or of another shape counts as none."""
    parts = Parts(tmp_path, {})
    parts.get("natural", "judgement", lambda: 1)
    (path,) = tmp_path.iterdir()
    for content in (path.read_text()[:-4], "", "[]", "{}", "null"):
        path.write_text(content)
        assert parts.get("natural", "judgement", lambda: 2) == 2


def test_part_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A part that raises, or has a NaN in it, is not kept."""
    parts = Parts(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        parts.get("natural", "judgement", _interrupt)
    with pytest.raises(ValueError, match="JSON compliant"):
        parts.get("natural", "judgement", lambda: float("nan"))
    assert list(tmp_path.iterdir()) == []


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_names_of_data_are_safe_file_names(tmp_path: Path) -> None:
    """Slashes, dots and letters of any script in a data set's name stay in the folder and apart from each other."""
    parts = Parts(tmp_path / "parts", {})
    names = ["../../x", "..", "a/b", "a b", "a-b", "é", "ü", "x" * 300, HOSTILE]
    for name in names:
        assert parts.get(name, "judgement", lambda name=name: name) == name
    assert len(list((tmp_path / "parts").iterdir())) == len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """It says so in a sentence that names the option."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FastRMError, match="--output"):
        Parts(tmp_path / "file" / "parts", {})
