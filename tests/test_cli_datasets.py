"""The data sets by the options of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fastrm_monitor import cli
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab.datasets.options import Chosen, choose
from fastrm_monitor.lab.datasets.scene_files import write_gqa, write_jsonl, write_pope, write_vqav2


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command with a cache of its own; `--output` is given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def invoke(command: str, *words: object) -> Result:
        return CliRunner().invoke(cli.app, [command, "--output", str(tmp_path / command), *map(str, words)])

    return invoke


def test_distill_on_scene_graphs(invoke, tmp_path: Path) -> None:
    """`distill` on GQA's files makes a proxy, and says which data it was made of."""
    questions, graphs, images = write_gqa(tmp_path / "gqa", "natural", pictures=16, seed=9)
    files = ("--dataset", "gqa", "--questions", questions, "--scene-graphs", graphs, "--images", images)
    done = invoke("distill", *files, "--epochs", "1", "--key-size", "4", "--projection-size", "8")
    assert done.exit_code == 0, done.exception
    config = json.loads((tmp_path / "distill" / "config.json").read_text())
    assert config["training"]["data"].startswith("gqa-questions-")


def test_evaluate_on_several_files(invoke, tmp_path: Path) -> None:
    """`evaluate` makes a part of each questions file, the first one in distribution."""
    (first, second, _), images = write_pope(tmp_path, "natural", pictures=10, seed=9)
    files = ("--dataset", "pope", "--questions", first, "--questions", second, "--images", images)
    done = invoke("evaluate", *files, "--sections", "none", "--limit", "40")
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "evaluate" / "report.json").read_text())
    assert (report["data"], *report["shifts"]) == ("pope coco_pope_random", "pope coco_pope_popular")
    assert [list(part["pope"]) for part in (report, *report["shifts"].values())] == [["random"], ["popular"]]
    assert report["pope"]["random"]["accuracy"]["rate"] == report["accuracy"]["all"]["rate"]


def test_evaluate_on_several_forms(invoke, tmp_path: Path) -> None:
    """VQA, GQA and POPE forms and a shift stand in one report, the first in distribution, each with its own files."""
    asked, annotated, pictures = write_vqav2(tmp_path / "vqa", "natural", pictures=10, seed=9)
    questions, graphs, images = write_gqa(tmp_path / "gqa", "natural", pictures=8, seed=9)
    (_, _, adversarial), photographs = write_pope(tmp_path / "pope", "natural", pictures=6, seed=9)
    forms = ("--dataset", "vqav2", "--dataset", "gqa", "--dataset", "pope", "--dataset", "scenes", "--kinds", "noise")
    files = ("--questions", asked, "--questions", questions, "--questions", adversarial)
    more = ("--annotations", annotated, "--scene-graphs", graphs)
    folders = ("--images", pictures, "--images", images, "--images", photographs)
    done = invoke("evaluate", *forms, *files, *more, *folders, "--pictures", 5, "--sections", "none")
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "evaluate" / "report.json").read_text())
    assert report["data"] == "vqav2 questions"
    assert (
        list(report["shifts"])
        == list(report["generalisation"])
        == ["gqa questions", "pope coco_pope_adversarial", "noise"]
    )
    assert [part["pictures"] for part in (report, *report["shifts"].values())] == [10, 8, 6, 5]
    assert "adversarial" in (tmp_path / "evaluate" / "report.html").read_text()


def test_same_file_twice(invoke, tmp_path: Path) -> None:
    """A file that is given twice makes two parts with names of their own."""
    questions = write_jsonl(tmp_path / "own", "easy", pictures=4, seed=9)
    twice = ("--dataset", "jsonl", "--questions", questions, "--questions", questions)
    assert invoke("evaluate", *twice, "--sections", "none").exit_code == 0
    report = json.loads((tmp_path / "evaluate" / "report.json").read_text())
    assert (report["data"], list(report["shifts"])) == ("jsonl questions", ["jsonl questions (2)"])


def test_tested_on_the_training_data(invoke, tmp_path: Path) -> None:
    """A report on the pictures that the proxy was made of says so, and which questions it left out; others do not."""
    questions = write_jsonl(tmp_path / "own[red]", "natural", pictures=16, seed=9)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows.append({**rows[0], "id": "gone", "image": "pictures/[/b].png"})
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = invoke(
        "distill",
        "--dataset",
        "jsonl",
        "--questions",
        questions,
        "--epochs",
        1,
        "--key-size",
        4,
        "--projection-size",
        8,
    )
    assert trained.exit_code == 0, trained.exception
    (other, *_), images = write_pope(tmp_path / "pope", "natural", pictures=5, seed=10)
    forms = ("--dataset", "jsonl", "--dataset", "pope", "--dataset", "scenes", "--kinds", "natural", "--pictures", 5)
    files = ("--questions", questions, "--questions", other, "--images", questions.parent, "--images", images)
    proxy = ("--proxy", tmp_path / "distill", "--sections", "none")
    done = invoke("evaluate", *forms, *files, *proxy)
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "evaluate" / "report.json").read_text())
    assert report["in_training"] == {"distill": {"pictures": 16, "of": 17}}
    assert report["left_out"]["questions"] == 1
    assert report["left_out"]["of"] == len(rows)
    assert "'pictures/[/b].png'" in report["left_out"]["first"]
    for part in report["shifts"].values():
        assert part["in_training"] == {}
        assert part["left_out"] == {"questions": 0, "of": part["questions"], "first": ""}
    line = "16 of 17 pictures were used to train the proxy distill: these figures say nothing about new pictures."
    for place in (done.stderr, done.stdout, (tmp_path / "evaluate" / "report.html").read_text()):
        assert place.count(line) == 1
        assert f"jsonl questions: {line}" in place


A, B, C = Path("a"), Path("b"), Path("c")


def test_files_go_to_the_forms_that_use_them() -> None:
    """Each form takes the next file of what it uses; what is given once serves all."""
    given = {"questions": [A, B, C], "annotations": [A], "images": [B], "scene-graphs": [C]}
    assert choose(["vqav2", "scenes", "gqa", "pope"], given) == [
        Chosen("vqav2", A, A, B),
        Chosen("scenes"),
        Chosen("gqa", B, None, B, C),
        Chosen("pope", C, None, B),
    ]
    assert choose(["pope"], {"questions": [A, B], "images": [C]}) == [
        Chosen("pope", A, images=C),
        Chosen("pope", B, images=C),
    ]


@pytest.mark.parametrize(
    ("forms", "given", "said"),
    [
        (["gqa", "pope"], {"questions": [A]}, "--questions was given 1 times for 2 data sets"),
        (["gqa", "pope", "vqav2"], {"images": [A, B]}, "--images was given 2 times for 3 data sets"),
        (["gqa", "pope"], {"annotations": [A]}, "--dataset gqa and pope does not use --annotations."),
        (["gqa", "vqa"], {}, "--dataset 'vqa' is not known: choose scenes or vqav2 or gqa or pope or jsonl."),
    ],
)
def test_files_that_cannot_be_matched(forms: list[str], given: dict[str, list[Path]], said: str) -> None:
    """Files are never matched by guessing: too few, too many or idle ones are one sentence."""
    with pytest.raises(FastRMError) as refused:
        choose(forms, given)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--dataset gqa", "--dataset gqa needs --questions FILE and --images FOLDER."),
        ("--dataset pope --questions q.json", "--dataset pope needs --questions FILE and --images FOLDER."),
        ("--dataset jsonl", "--dataset jsonl needs --questions FILE."),
        ("--dataset pope --annotations a.json", "--dataset pope does not use --annotations."),
        ("--questions q.json --images i", "--dataset scenes does not use --questions and --images."),
        ("--dataset vqa", "--dataset 'vqa' is not known: choose scenes or vqav2 or gqa or pope or jsonl."),
        ("--dataset jsonl --questions gone.jsonl", "There is no file gone.jsonl."),
    ],
)
def test_wrong_options(invoke, words: str, said: str) -> None:
    """Options that are missing, or that a data set does not use, are one sentence, for both commands."""
    for command in ("distill", "evaluate"):
        done = invoke(command, *words.split())
        assert isinstance(done.exception, FastRMError)
        assert str(done.exception) == said


def test_pictures_beside_the_file(invoke, tmp_path: Path) -> None:
    """JSON lines need no folder of pictures."""
    questions = write_jsonl(tmp_path / "own", "easy", pictures=10, seed=9)
    done = invoke("evaluate", "--dataset", "jsonl", "--questions", questions, "--sections", "none")
    assert done.exit_code == 0, done.exception
