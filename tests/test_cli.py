"""The command line as its user types it: results on success; one sentence and exit code 2 on a mistake."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fastrm_monitor import cli
from fastrm_monitor.demo import MODEL_FOLDER, PROXY_FOLDER
from fastrm_monitor.lab import ask
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.scene_files import write_vqav2
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED
from fastrm_monitor.records.store import Store
from fastrm_monitor.terminal import progress

QUESTION = "is there a red circle?"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FASTRM_PROXY", "FASTRM_STORE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fastrm-monitor", *map(str, words)])
        monkeypatch.setattr(cli.console, "_width", 200)
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (64, 64), (120, 120, 120)).save(path)
    return path


@pytest.fixture
def proxy(tmp_path):
    """A copy of the embedded proxy folder, to be spoilt."""
    return Path(shutil.copytree(PROXY_FOLDER, tmp_path / "proxy"))


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder, change):
    tensors = load_file(folder / "proxy.safetensors")
    change(tensors)
    save_file(tensors, folder / "proxy.safetensors")


def wider(folder):
    """The proxy of a model with wider states."""
    from fastrm_monitor.scoring.checkpoint import save_proxy
    from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

    shutil.rmtree(folder)
    save_proxy(folder, build_proxy(ProxyConfig(256)), torch.ones(256), model_id="other/llava")


SPOILT = {
    "missing folder": (shutil.rmtree, "There is no proxy folder at"),
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda p: (p / "proxy.safetensors").unlink(), "has no proxy.safetensors"),
    "truncated weights": (
        lambda p: (p / "proxy.safetensors").write_bytes((p / "proxy.safetensors").read_bytes()[:500]),
        "is corrupt",
    ),
    "broken confidence": (lambda p: (p / "confidence.json").write_text("{"), "confidence.json cannot be read"),
    "another width": (wider, "is for hidden states of width 256, this model's have 128"),
    "another image token": (lambda p: change_config(p, image_token_id=32000), "is for image token 32000"),
    "another norm": (lambda p: change_config(p, norm={"type": "LayerNorm"}), "is for a final norm of type LayerNorm"),
    "another model's weights": (
        lambda p: change_weights(p, lambda tensors: tensors["model_norm.weight"].mul_(3)),
        "the final norms differ",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_proxy(run, picture, proxy, what):
    """Whatever is wrong with a proxy folder is one sentence that says what to do, and exit code 2."""
    spoil, said = SPOILT[what]
    spoil(proxy)
    code, _, err = run("score", "--image", picture, "--question", QUESTION, "--proxy", proxy)
    check_sentence(code, err, said)
    assert "distil" in err or "copy" in err


def check_sentence(code, err, said):
    assert code == 2
    assert said in err
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_score(run, tmp_path, picture):
    """`score` answers, with confidence and a heatmap in a file; `--json` says the same for programs."""
    words = ("score", "--image", picture, "--question", QUESTION, "--overlay", tmp_path / "heat.png")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "confidence" in out
    with Image.open(tmp_path / "heat.png") as heat:
        assert heat.size == (64, 64)
    code, out, _ = run(*words, "--json")
    facts = json.loads(out)
    assert code == 0
    assert 0 <= facts["confidence"] <= 1
    assert facts["answer"] in ("yes", "no")
    assert {"map_entropy", "token_probability"} <= set(facts["features"])


def test_bad_pictures_and_questions(run, tmp_path, picture):
    """A missing, truncated or textual picture, an empty question, and no picture at all: a sentence each."""
    truncated = tmp_path / "cut.png"
    truncated.write_bytes(picture.read_bytes()[:60])
    text = tmp_path / "text.png"
    text.write_text("<svg onload=alert(1)>")
    for path, said in (
        (tmp_path / "none.png", "does not exist"),
        (truncated, "truncated or damaged"),
        (text, "is not a picture"),
        (tmp_path, "is a folder, not a picture"),
    ):
        code, _, err = run("score", "--image", path, "--question", QUESTION)
        check_sentence(code, err, said)
    check_sentence(*run("score", "--image", picture, "--question", " ")[::2], "The question is empty")
    code, _, err = run("score", "--question", QUESTION)
    assert code == 2
    assert "--image" in err
    assert "Traceback" not in err


def test_other_models(run, tmp_path, picture):
    """A model that cannot be had, one without a proxy, and an overlay that cannot be written: a sentence each."""
    words = ("score", "--image", picture, "--question", QUESTION)
    check_sentence(*run(*words, "--model", tmp_path / "no-model")[::2], "No proxy for")
    code, _, err = run(*words, "--model", tmp_path / "no-model", "--proxy", PROXY_FOLDER)
    check_sentence(code, err, "There is no model folder at")
    code, _, err = run(*words, "--model", PROXY_FOLDER, "--proxy", PROXY_FOLDER)
    check_sentence(code, err, "No vision-language model could be loaded from")
    code, _, err = run(*words, "--overlay", tmp_path / "nowhere" / "heat.png")
    check_sentence(code, err, "The overlay cannot be written")


def test_stores_that_cannot_be_opened(run, tmp_path):
    """A bad URL, a missing folder, a file that is no database and a newer schema: a sentence each, no password."""
    junk = tmp_path / "junk.db"
    junk.write_text("not a database, and long enough to be read as one by nobody at all")
    newer = tmp_path / "newer.db"
    Store(f"sqlite:///{newer}").close()
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for url, said in (
        ("oracle://user:hunter2@host/db", "A store cannot be of the kind"),
        (f"sqlite:///{tmp_path}/nowhere/store.db", "does not exist; make it first"),
        (f"sqlite:///{junk}", "is not an SQLite database"),
        (f"sqlite:///{newer}", "which this version does not know"),
        ("postgresql://user:hunter2@127.0.0.1:9/db", "cannot be opened"),
    ):
        code, _, err = run("db", "upgrade", "--store", url)
        check_sentence(code, err, said)
        assert "hunter2" not in err


def test_db_upgrade_and_doctor(run, tmp_path, monkeypatch):
    """`db upgrade` makes the schema; `doctor` names versions, proxy, store and counts, and is 2 when one is broken."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    code, out, _ = run("db", "upgrade", "--store", url)
    assert (code, "at version 0005" in out) == (0, True)
    check_sentence(*run("doctor", "--store", f"sqlite:///{tmp_path / 'typo.db'}")[::2], "There is no store at")
    check_sentence(*run("dashboard", "--store", f"sqlite:///{tmp_path / 'typo.db'}")[::2], "There is no store at")
    assert not (tmp_path / "typo.db").exists()
    code, out, err = run("doctor", "--store", url)
    assert (code, err) == (0, "")
    for said in ("fastrm-monitor 0", "torch: 2", "proxy:", "store: sqlite"):
        assert said in out
    monkeypatch.setenv("FASTRM_PROXY", str(tmp_path / "gone"))
    code, out, _ = run("doctor", "--store", url)
    assert code == 2
    assert "There is no proxy folder" in out


def test_bad_settings(run, monkeypatch):
    """A variable out of range names itself."""
    monkeypatch.setenv("FASTRM_SAMPLE_RATE", "7")
    check_sentence(*run("doctor")[::2], "FASTRM_SAMPLE_RATE")


def test_distill_and_evaluate_on_official_files(run, tmp_path):
    """`distill` on VQAv2's file form makes a proxy folder that `evaluate` judges and `score` uses."""
    questions, annotations, images = write_vqav2(tmp_path / "vqa", "natural", 40, seed=9)
    files = ("--dataset", "vqav2", "--questions", questions, "--annotations", annotations, "--images", images)
    code, out, _ = run("distill", *files, "--output", tmp_path / "made", "--epochs", "2", "--key-size", "16")
    assert code == 0
    assert "auprc" in out
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["training"]["data"].startswith("vqav2-questions")
    assert {one.name for one in (tmp_path / "made").iterdir()} >= {"proxy.safetensors", "config.json"}
    words = ("--proxy", tmp_path / "made", "--sections", "none", "--output", tmp_path / "report")
    code, out, _ = run("evaluate", *files, *words)
    assert code == 0
    assert "Fidelity" in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["schema_version"] == 5
    assert 0 < report["fidelity"]["base_rate"] < 1
    picture = next(images.iterdir())
    code, out, _ = run("score", "--image", picture, "--question", QUESTION, "--proxy", tmp_path / "made", "--json")
    assert (code, json.loads(out)["proxy_version"] != "") == (0, True)


def test_outputs_that_cannot_be_written(run, tmp_path):
    """`distill` and `evaluate` say that their output cannot be written before they work for hours."""
    (tmp_path / "file").write_text("")
    for command in ("distill", "evaluate"):
        check_sentence(*run(command, "--output", tmp_path / "file")[::2], "cannot be written")
        check_sentence(*run(command, "--output", tmp_path / "file" / "below")[::2], "cannot be written")


def test_brackets_are_no_markup(run, tmp_path, picture, monkeypatch):
    """Names of files, and what the model says, are printed as they are, also where they look like markup."""
    ask = Asker.ask
    monkeypatch.setattr(Asker, "ask", lambda *words: ask(*words) and "a [red]ring[/b]")
    code, out, _ = run("score", "--image", picture, "--question", QUESTION, "--overlay", "heat[red].png")
    assert code == 0
    assert {"a [red]ring[/b]", "heat[red].png"} <= {line.split(maxsplit=1)[-1].strip() for line in out.splitlines()}
    commands = {
        "demo --count 20 --no-open --output shown[red]": (
            "store: sqlite:///shown[red]",
            "the store is sqlite:///shown[red]",
            "overlays: shown[red]",
        ),
        "export --all --store sqlite:///shown[red]/fastrm.db --output cases[red]": ("written: cases[red]",),
        "distill --pictures 8 --calibrate-pictures 0 --kinds easy --epochs 1 --output made[red]": ("proxy made[red]",),
        "evaluate --kinds easy --pictures 2 --sections none --output told[red]": ("written: told[red]",),
    }
    for words, expected in commands.items():
        code, out, err = run(*words.split())
        assert code == 0, err
        for one in expected:
            assert one in out


def test_brackets_in_a_bar(capsys):
    """A bar may be called by the name of any file."""
    with progress() as bar:
        bar.add_task("labelling jsonl-q[/b].[red]", total=1)
    assert "labelling jsonl-q[/b].[red]" in capsys.readouterr().err


def test_smallest_distillation(run, tmp_path):
    """Any small number of steps trains, nine among them."""
    words = ("distill", "--pictures", "8", "--calibrate-pictures", "0", "--kinds", "easy")
    for epochs in (1, 9):
        code, _, err = run(*words, "--epochs", epochs, "--output", tmp_path / f"p{epochs}")
        assert code == 0, err
    for given in ("nan", "-1", "5"):
        assert run(*words, "--label-threshold", given, "--output", tmp_path / "p")[0] == 2


def test_placeholder_in_a_question(run, picture):
    """A question that holds the picture's placeholder is a question, not another picture."""
    code, out, err = run("score", "--image", picture, "--question", "<image> is there a red circle?", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["answer"] in ("yes", "no")


def test_bad_data_sets(run, tmp_path):
    """Missing arguments, a truncated questions file, the wrong file, no pictures, an unknown kind: a sentence each."""
    questions, annotations, images = write_vqav2(tmp_path / "vqa", "natural", 3, seed=9)
    cut = tmp_path / "cut.json"
    cut.write_bytes(questions.read_bytes()[:200])
    empty = tmp_path / "empty"
    empty.mkdir()

    def evaluate(*words):
        code, _, err = run("evaluate", "--output", tmp_path / "r", *words)
        return code, err

    def files(questions=questions, annotations=annotations, images=images):
        return ("--dataset", "vqav2", "--questions", questions, "--annotations", annotations, "--images", images)

    check_sentence(*evaluate("--dataset", "vqav2"), "needs --questions FILE, --annotations FILE and --images FOLDER")
    check_sentence(*evaluate("--dataset", "coco"), "--dataset 'coco' is not known")
    check_sentence(*evaluate("--kinds", "martian"), "There is no kind of scene 'martian'")
    check_sentence(*evaluate(*files(questions=cut)), "is not a complete JSON file")
    check_sentence(*evaluate(*files(questions=annotations)), "is not an official VQAv2 file")
    check_sentence(*evaluate(*files(questions=tmp_path / "no.json")), "There is no file")
    check_sentence(*evaluate(*files(images=empty)), "There is no picture of id")


@pytest.fixture
def no_model(monkeypatch):
    """A mistake is told before any model is loaded."""

    def load(*_):
        raise AssertionError("A model was loaded.")

    monkeypatch.setattr(ask, "load_lvlm", load)


def test_kinds_to_calibrate_on_are_known_before_the_labelling(run, no_model):
    """An unknown kind of scene among those of the confidence is told at once, not after the training scenes."""
    words = ("--pictures", "8", "--kinds", "easy", "--output", "made")
    for kinds in ("natural,nobody", "nobody", "natural,"):
        code, _, err = run("distill", *words, "--calibrate-kinds", kinds)
        check_sentence(code, err, "There is no kind of scene")


def test_a_limit_on_scenes(run, no_model):
    """`--limit` counts questions of files; of scenes only it is refused, and the sentence says what to use instead."""
    for command in ("distill", "evaluate"):
        code, _, err = run(command, "--limit", "5", "--output", "out")
        check_sentence(code, err, "--dataset scenes does not use --limit: say with --pictures")


def test_one_proxy_twice(run, no_model, proxy):
    """A proxy folder that is given twice, however it is written, is refused by its name."""
    (proxy.parent / "link").symlink_to(proxy)
    for again in (proxy, "proxy", "./proxy/../proxy", "link"):
        words = ("--kinds", "easy", "--pictures", "1", "--output", "out", "--proxy", proxy, "--proxy", again)
        code, _, err = run("evaluate", *words)
        check_sentence(code, err, f"--proxy {Path(again)} names the same folder as another --proxy")


def test_sections_that_contradict_each_other(run, no_model):
    """'none' and 'all' beside another section are refused."""
    for sections in ("none,cost", "cost,all", "all, none"):
        words = ("--kinds", "easy", "--pictures", "1", "--output", "out", "--sections", sections)
        code, _, err = run("evaluate", *words)
        check_sentence(code, err, f"--sections '{sections}' contradicts itself: 'none' and 'all' stand alone")
    code, _, err = run("evaluate", "--kinds", "easy", "--pictures", "1", "--output", "out", "--sections", "none,x")
    check_sentence(code, err, "--sections 'x' is not known")


def test_seeds_that_are_no_test(run, no_model, tmp_path):
    """A seed whose scenes taught the model, a proxy or its confidence is refused, and any where there are no scenes."""
    for seed, said in (
        (1, "--seed 1 draws the scenes that the embedded model was trained on, which say nothing about new ones"),
        (101, "--seed 101 draws the scenes that proxies are trained on"),
        (102, "--seed 102 draws the scenes that confidences are fitted on"),
    ):
        code, _, err = run("evaluate", "--seed", seed, "--output", "out")
        check_sentence(code, err, said)
    questions, annotations, images = write_vqav2(tmp_path / "vqa", "natural", 3, seed=9)
    files = ("--dataset", "vqav2", "--questions", questions, "--annotations", annotations, "--images", images)
    code, _, err = run("evaluate", *files, "--seed", TEST_SEED, "--output", "out")
    check_sentence(code, err, "--dataset vqav2 does not use --seed.")


def test_another_seed_in_the_same_folder(run, tmp_path):
    """A report begun with one seed is not mixed into that of another; without the option the seed is the usual one."""

    def evaluate(output, *more):
        words = ("--kinds", "easy", "--pictures", 6, "--sections", "none", "--output", output)
        code, _, err = run("evaluate", *words, *more)
        assert code == 0, err
        return json.loads((tmp_path / output / "report.json").read_text())

    usual, other = evaluate("a"), evaluate("b", "--seed", 7)
    assert usual["confidence"]["token_probability"]["brier"] != other["confidence"]["token_probability"]["brier"]
    assert evaluate("a", "--seed", 7) == other
    assert evaluate("a", "--seed", TEST_SEED) == evaluate("c") == usual
    assert f"default {TEST_SEED}" in " ".join(run("evaluate", "--help")[1].split())


def test_dashboard_refuses_other_machines(run, tmp_path):
    """Where nobody signs in the dashboard does not listen where others reach it."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    Store(url).close()
    code, _, err = run("dashboard", "--host", "0.0.0.0", "--store", url, "--no-open")
    check_sentence(code, err, "Without sign-in")


def test_help_has_an_example_for_every_command(run):
    """`--help` of each command explains it and shows an example."""
    for command in ("demo", "score", "distill", "evaluate", "dashboard", "doctor", "db upgrade"):
        code, out, _ = run(*command.split(), "--help")
        assert code == 0
        assert f"Example: fastrm-monitor {command}" in " ".join(out.split())


def test_demo(run, tmp_path):
    """The demo serves, flags, stores and draws; what it says was stored is in the store, and every overlay is there."""
    code, out, err = run("demo", "--count", "40", "--output", tmp_path / "demo", "--no-open")
    assert code == 0, err
    text = " ".join(out.split())
    assert "40 answers served, 40 scored" in text
    assert "dashboard --store sqlite:///" in text
    with Store(f"sqlite:///{tmp_path / 'demo' / 'fastrm.db'}") as store:
        totals = store.totals()
    flagged = sum(value for (name, _), value in totals.items() if name == "flagged")
    assert (totals["seen", ""], totals["scored", ""]) == (40, 40)
    assert totals["stored", ""] >= flagged
    assert len(list((tmp_path / "demo" / "overlays").iterdir())) == flagged
    assert MODEL_FOLDER.is_dir()
    code, _, err = run("demo", "--output", tmp_path / "demo" / "fastrm.db")
    check_sentence(code, err, "The demo cannot write to")
