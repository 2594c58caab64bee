"""The command line on a model and data that it has never seen: nothing is taken for granted of the package's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastrm_monitor import cli
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.errors import ModelError
from tests.unseen import Data, Shape, make_model, make_next

SHAPES = {
    "CLIP, cropped": Shape(width=96, layers=3, heads=6, tower="clip", patch=14, side=84),
    "SigLIP, squashed, 16 bits": Shape(48, 5, 3, "siglip", patch=16, side=80, dtype=torch.bfloat16),
}
PROXY = {"distill": ("--pictures", "1"), "evaluate": ("--proxy", PROXY_FOLDER)}
BRIEF = ("--epochs", "2", "--key-size", "8", "--projection-size", "16")


def run(command: str, output: Path, cache: Path, *words: object) -> None:
    done = CliRunner().invoke(
        cli.app, [command, "--output", str(output), "--cache", str(cache), *map(str, words)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_report_of_an_unseen_model(tmp_path: Path, shape: Shape) -> None:
    """From the model's folder and the official files to a whole report: every claim measured, no number missing."""
    model, cache = make_model(tmp_path / "model", shape), tmp_path / "cache"
    data = Data(tmp_path, model, pictures=40)
    taught = data.vqav2()
    run("distill", tmp_path / "ours", cache, "--model", model, *taught, *BRIEF)
    run("distill", tmp_path / "wide", cache, "--model", model, *taught, *BRIEF, "--form", "self-attention")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["hidden_size"], config["image_token_id"], config["evidence"]) == (shape.width, 4, True)
    proxies = ("--proxy", tmp_path / "ours", "--proxy", tmp_path / "wide")
    files = (*taught, *data.gqa(), *data.pope())
    run("evaluate", tmp_path / "report", cache, "--model", model, *proxies, *files, "--again", "8")

    report = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["data"].startswith("vqav2")
    assert [name.split()[0] for name in report["shifts"]] == ["gqa", "pope"]
    parts = [report, *report["shifts"].values()]
    assert [part["questions"] for part in parts] == [160, 80, 80]
    assert all(0.2 < part["accuracy"]["all"]["rate"] < 0.8 for part in parts)
    assert all(part["confidence"]["fastrm"]["conclusive"] for part in parts)
    assert all(part["perturbation"]["questions"] == 8 for part in parts)
    assert [bool(part["pope"]) for part in parts] == [False, False, True]
    assert parts[1]["pointing"]["proxy"]["n"] == 80
    assert report["layers"]["choices"]["final"]["width"] == shape.width
    assert report["cost"]["image_tokens"] == (shape.side // shape.patch) ** 2
    verdicts = {one["id"]: one["verdict"] for one in report["verdicts"]}
    assert "not measured" not in verdicts.values(), verdicts
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_family_without_a_layout(tmp_path: Path, command: str) -> None:
    """LLaVA-NeXT, whose tiles follow the picture, is refused in one sentence before anything is labelled."""
    model = make_next(tmp_path / "model")
    with pytest.raises(ModelError, match=r"No patch layout is known for model type 'llava_next'.*register_layout"):
        run(command, tmp_path / "out", tmp_path / "cache", "--model", model, *PROXY[command])
    assert not (tmp_path / "cache").exists()
