"""The data sets by the options of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fastrm_monitor import cli
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab.datasets.scene_files import write_gqa, write_jsonl, write_pope


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
    assert report["data"].startswith("pope-coco_pope_random-")
    (shift,) = report["shifts"]
    assert shift.startswith("pope-coco_pope_popular-")


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
