"""Export: what reviewers said leaves the store whole, in three formats, and teaches nobody a wrong answer."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor import cli
from fastrm_monitor.errors import DataError, MissingExtraError
from fastrm_monitor.lab.datasets.exported import read_rows
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.records import export
from fastrm_monitor.records.images import unpack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store

Make = Callable[..., Case]
VERDICTS = ("correct", "wrong", "not_grounded", "unsure")


@pytest.fixture
def store(any_store_url: str) -> Iterator[Store]:
    """On SQLite, then on PostgreSQL."""
    with Store(any_store_url) as opened:
        yield opened


@pytest.fixture
def one(store_url: str) -> Iterator[Store]:
    """On SQLite alone."""
    with Store(store_url) as opened:
        yield opened


@pytest.fixture
def cases(make_case: Make) -> list[Case]:
    """Five cases, each with a picture of its own; the last two are of the random sample alone."""
    made = [make_case(number, sampled=number > 2, flagged=number < 4) for number in range(5)]
    for number, case in enumerate(made):
        case.pictures[0].sha256 = f"{number:064d}"
    return made


def labelled(store: Store, cases: list[Case]) -> list[str]:
    """Put cases in and give the first four of them each another verdict; returns all ids."""
    store.add(cases)
    ids = [case.case_id for case in cases]
    for case_id, verdict in zip(ids, VERDICTS, strict=False):
        store.review(case_id, verdict, "ann", f"note on {verdict}", ["glare"])
    return ids


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def test_row(store: Store, cases: list[Case], tmp_path: Path) -> None:
    """A row has what the store has: question, answer, the verdict with its note, every number, map and picture."""
    cases[0].policy = 7
    (case_id, *_) = labelled(store, cases)
    assert export.write(store, tmp_path / "out") == 4
    row = read(tmp_path / "out")[0]
    assert row["policy"] == 7
    case, stored = cases[0], cases[0].pictures[0]
    for name in ("question", "answer", "confidence", "features", "flagged", "sampled", "sample_rate", "model"):
        assert row[name] == getattr(case, name)
    assert (row["id"], row["verdict"], row["right"], row["group"]) == (case_id, "correct", True, "flagged")
    assert (row["reviewer"], row["note"], row["tags"]) == ("ann", "note on correct", ["glare"])
    assert datetime.fromisoformat(row["created_at"]) == case.created_at
    assert (row["proxy_version"], row["sha256"]) == (case.proxy_version, stored.sha256)
    (picture,) = row["pictures"]
    assert (tmp_path / "out" / row["image"]).read_bytes() == stored.content
    assert (picture["file"], picture["width"], picture["region"]) == (row["image"], 64, [0.0, 0.0, 1.0, 1.0])
    assert np.allclose(picture["map"], unpack_map(stored.relevance, stored.rows, stored.columns), atol=5e-5)


def test_newest_verdict_counts(store: Store, cases: list[Case], tmp_path: Path) -> None:
    """A case that was overruled has the last word alone; one that was reopened has none and is not there."""
    first, second, *_ = labelled(store, cases)
    store.review(first, "wrong", "bob", "no")
    store.review(second, "undone", "bob")
    export.write(store, tmp_path / "out")
    rows = {row["id"]: row for row in read(tmp_path / "out")}
    assert (rows[first]["verdict"], rows[first]["reviewer"], rows[first]["tags"]) == ("wrong", "bob", [])
    assert second not in rows


def test_all_and_since(store: Store, cases: list[Case], tmp_path: Path) -> None:
    """Without a verdict a case is there only when all are wanted; older ones than asked for are not."""
    cases[0].created_at = datetime.now(UTC) - timedelta(days=9)
    ids = labelled(store, cases)
    assert export.count(store, labelled=False) == export.write(store, tmp_path / "all", labelled=False) == 5
    assert [row["id"] for row in read(tmp_path / "all")] == ids
    last = read(tmp_path / "all")[-1]
    assert (last["verdict"], last["right"], last["reviewer"], last["group"]) == (None, None, None, "not flagged")
    since = datetime.now(UTC) - timedelta(days=1)
    assert export.count(store, since=since) == export.write(store, tmp_path / "new", since=since) == 3
    assert [row["id"] for row in read(tmp_path / "new")] == ids[1:4]


def test_more_than_one_part(one: Store, make_case: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store larger than what is read at once is exported whole, in order, each case once."""
    monkeypatch.setattr(export, "_PART", 3)
    made = [make_case(number) for number in range(7)]
    one.add(made)
    for form in ("jsonl", "parquet"):
        export.write(one, tmp_path / form, form, labelled=False)
        assert [row["id"] for row in read(tmp_path / form)] == [case.case_id for case in made]


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_formats_say_the_same(store: Store, cases: list[Case], tmp_path: Path, form: str) -> None:
    """Every format reads back as the same rows, with the same picture files."""
    labelled(store, cases)
    export.write(store, tmp_path / "lines")
    export.write(store, tmp_path / form, form)
    for row, other in zip(read(tmp_path / "lines"), read(tmp_path / form), strict=True):
        maps = [np.array(one["pictures"][0].pop("map")) for one in (row, other)]
        assert np.allclose(*maps)
        assert {name: other[name] for name in row} == row
        assert (tmp_path / form / row["image"]).read_bytes() == (tmp_path / "lines" / row["image"]).read_bytes()


def test_hugging_face_reads_the_folder(
    one: Store, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real `datasets` loads it: pictures as pictures, verdicts and numbers as columns; it needs no network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    ids = labelled(one, cases)
    export.write(one, tmp_path / "out", "datasets")
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data["id"][:] == ids[:4]
    assert data["verdict"][:] == list(VERDICTS)
    assert (data[0]["image"].size, data[0]["confidence"], data[0]["features"]["token_entropy"]) == ((64, 64), 0.2, 1.1)
    with Image.open(tmp_path / "out" / data[0]["pictures"][0]["file"]) as opened:
        assert np.array_equal(np.asarray(data[0]["image"]), np.asarray(opened.convert("RGB")))


def test_datasets_take_pictures_only(one: Store, cases: list[Case], tmp_path: Path) -> None:
    """There a row is a picture: a case without one is left out, and a store without any is one sentence."""
    cases[1].pictures[0].content = None
    labelled(one, cases)
    assert export.write(one, tmp_path / "out", "datasets") == 3
    assert export.write(one, tmp_path / "lines") == 4
    assert read(tmp_path / "lines")[1]["image"] is None


def test_same_picture_is_written_once(one: Store, cases: list[Case], tmp_path: Path) -> None:
    """Two questions about one picture name one file."""
    for case in cases[:2]:
        case.pictures[0].sha256, case.pictures[0].content = "a" * 64, b"the same"
    labelled(one, cases)
    export.write(one, tmp_path / "out")
    first, second, *_ = read(tmp_path / "out")
    assert first["image"] == second["image"]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


# --- what the lab makes of it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", export.FORMATS)
def test_wrong_answers_are_not_taught(one: Store, cases: list[Case], tmp_path: Path, form: str) -> None:
    """A right answer is a reference; of a wrong one only that is known; what reviewers left open is no question."""
    ids = labelled(one, cases)
    export.write(one, tmp_path / "out", form, labelled=False)
    data = JSONL(tmp_path / "out")
    right, wrong = data
    assert [right.id, wrong.id] == ids[:2]
    assert (right.answers, wrong.answers) == ((cases[0].answer,), ())
    assert [data.right(right, answer) for answer in (cases[0].answer, "another")] == [True, False]
    assert [data.right(wrong, answer) for answer in (f"The {cases[1].answer}.", "another")] == [False, None]
    assert right.picture().size == (64, 64)


def test_verdicts_change_the_name(one: Store, cases: list[Case], tmp_path: Path) -> None:
    """A case whose verdict turned makes another data set: labels of the first must not be taken for its own."""
    first, *_ = labelled(one, cases)
    names = []
    for number, verdict in enumerate(("correct", "wrong")):
        one.review(first, verdict, "ann")
        export.write(one, tmp_path / f"out{number}")
        names.append(JSONL(tmp_path / f"out{number}" / "cases.jsonl", tmp_path / "out0").name.rsplit("-", 1)[1])
    assert names[0] != names[1]


def test_cases_the_lab_cannot_ask(one: Store, cases: list[Case], make_case: Make, tmp_path: Path) -> None:
    """With two pictures, without a stored one, or without text a case is no question, yet calibration has it."""
    cases[0].pictures.append(make_case(7).pictures[0])
    cases[1].pictures[0].content = None
    cases[2].answer = " "
    one.add(cases)
    for case in cases:
        one.review(case.case_id, "correct", "ann")
    export.write(one, tmp_path / "out")
    assert len(read(tmp_path / "out")) == 5
    assert [sample.id for sample in JSONL(tmp_path / "out")] == [case.case_id for case in cases[3:]]


def test_round_trip(store_url: str, embedded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are served, judged, exported and distilled from: every label says what the verdict on the answer said."""
    from fastrm_monitor.demo import PROXY_FOLDER
    from fastrm_monitor.integrations.hf import Request, instrument
    from fastrm_monitor.lab.ask import Asker
    from fastrm_monitor.lab.datasets.scene_set import SceneSet
    from fastrm_monitor.lab.labels import make_labels

    monkeypatch.setattr("fastrm_monitor.lab.labels._SHARD", 64)
    model, processor = embedded
    asker = Asker(model, processor, max_new_tokens=4)
    data = SceneSet(["counter_prior"], 6, 3)  # the model errs on these
    samples = list(data)
    pictures = [sample.picture() for sample in samples]
    inputs = asker.inputs(pictures, [sample.question for sample in samples])
    requests = [
        Request(sample.id, sample.question, (picture,)) for sample, picture in zip(samples, pictures, strict=True)
    ]
    options: dict[str, Any] = {"store": store_url, "sample_rate": 1.0, "pictures": "full"}
    with instrument(model, processor, proxy=PROXY_FOLDER, **options) as handle, handle.requests(requests):
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    by_request = {sample.id: sample for sample in samples}
    truth = {}
    with Store(store_url) as store:
        for row in list(export.rows(store, lambda file, content: None, labelled=False)):
            truth[row["id"]] = data.right(by_request[row["request_id"]], row["answer"])
            store.review(row["id"], "correct" if truth[row["id"]] else "wrong", "script")
    assert len(truth) == len(samples)
    assert set(truth.values()) == {True, False}
    run(monkeypatch, "export", "--store", store_url, "--output", str(tmp_path / "out"))
    file = tmp_path / "out" / "cases.jsonl"
    facts = make_labels(asker, JSONL(file), tmp_path / "cache").facts
    assert {one.id: one.right for one in facts} == truth
    arguments = ("--dataset", "jsonl", "--questions", str(file), "--epochs", "1", "--cache", str(tmp_path / "cache"))
    run(monkeypatch, "distill", "--output", str(tmp_path / "proxy"), *arguments)
    assert (tmp_path / "proxy" / "proxy.safetensors").exists()


@pytest.mark.parametrize("form", export.FORMATS)
def test_calibration_reads_it(one: Store, cases: list[Case], tmp_path: Path, form: str) -> None:
    """`calibrate --answers` finds in every format what it finds in the store itself."""
    from fastrm_monitor.calibration.answers import from_rows, from_store

    labelled(one, cases)
    export.write(one, tmp_path / "out", form, labelled=False)
    there = from_rows((row for _, row in read_rows(tmp_path / "out")), "out")
    here = from_store(one)
    assert len(there) == 5
    for field in dataclasses.fields(here):
        np.testing.assert_array_equal(getattr(there, field.name), getattr(here, field.name), field.name)


# --- the command -----------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["fastrm-monitor", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_command(
    one: Store, store_url: str, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The command writes what was asked for, and says how many and where."""
    labelled(one, cases)
    words = ("export", "--store", store_url, "--all", "--since", "2020-01-01", "--format", "datasets")
    assert run(monkeypatch, *words, "--output", str(tmp_path / "out")) == 0
    assert f"5 cases written: {tmp_path / 'out' / 'metadata.jsonl'}" in capsys.readouterr().out
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"][:7] for line in lines] == ["images/"] * 5


def test_mistakes_are_one_sentence(
    one: Store, store_url: str, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No case, another format, a folder with something in it and a missing library say what to do."""
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"has no case with a verdict to export\.$"):
        export.write(one, out)
    assert list(out.iterdir()) == []
    labelled(one, cases)
    export.write(one, out)
    with pytest.raises(DataError, match="is not an empty folder: choose another"):
        export.write(one, out)
    assert run(monkeypatch, "export", "--store", store_url, "--output", str(out), "--format", "csv") == 2
    assert "--format 'csv' is not known: choose jsonl or parquet or datasets." in capsys.readouterr().err
    with pytest.raises(DataError, match=r"cannot be written: Not a directory\.$"):
        export.write(one, out / "cases.jsonl" / "below")
    with pytest.raises(DataError, match=r"is not an export: it has none of cases\.jsonl"):
        JSONL(tmp_path)
    (tmp_path / "cases.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        JSONL(tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        JSONL(tmp_path / "gone.parquet")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"fastrm-monitor\[export\]"):
        export.write(one, tmp_path / "other", "parquet")
