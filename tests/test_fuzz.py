"""Whatever is typed, linked to or lies in files: it works, or one sentence says what is wrong; nothing else is touched.

`make fuzz` runs this with over 10,000 inputs, `make test` with the first few.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, get_type_hints
from urllib.parse import quote_from_bytes, urlencode
from uuid import UUID

import pytest
import streamlit
import torch
import typer.main
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from streamlit.runtime.state.query_params import _parse_query_string

from fastrm_monitor import cli
from fastrm_monitor.calibration.answers import from_rows
from fastrm_monitor.dashboard import queries, related, serve, state, words
from fastrm_monitor.demo import PROXY_FOLDER, run
from fastrm_monitor.errors import FastRMError, ProxyError
from fastrm_monitor.lab import ask, labels
from fastrm_monitor.lab import evaluate as lab_evaluate
from fastrm_monitor.lab.datasets import scene_set
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.exported import read_rows
from fastrm_monitor.lab.datasets.gqa import GQA
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.records import claims, export
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.checkpoint import check_model, load_proxy, save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from fastrm_monitor.terminal import printable
from tests import fuzzing, pages
from tests.conftest import drawn_case
from tests.fuzzing import TALLY, THOROUGH, Streams, World, as_json, budget, check_output, check_sentence
from tests.test_hostile_files import LOADERS, RIGHT, content

WIDTH = 16
MOST_MEMORY = 2**30
"""Bytes that reading a proxy of a few kilobytes may take, whatever sizes its config makes up."""
PASSWORD = "correct-horse"
"""Stands in URLs of stores, and must never be shown."""


# --- the world -----------------------------------------------------------------------------------------------------


def tiny_proxy(folder: Path) -> None:
    """A proxy folder with every part that one may have."""
    torch.manual_seed(0)
    config = ProxyConfig(WIDTH, key_size=4, projection_size=8, match_size=4, grounding=True, evidence=True)
    confidence = LogisticConfidence(
        features=("token_probability", "map_entropy"),
        mean=(0.1, 0.2),
        scale=(1.0, 2.0),
        weights=(0.5, -0.5),
        intercept=0.25,
        threshold=0.6,
        probe=tuple(0.01 * n for n in range(WIDTH)),
        fitted_on={"data": "made up"},
    )
    facts = {"model_id": "org/model", "norm": {"type": "RMSNorm", "eps": 1e-5}, "metrics": {"f1": 0.5}}
    save_proxy(folder, build_proxy(config), torch.ones(WIDTH), confidence, image_token_id=4, **facts)


def furnish(folder: Path) -> None:
    """A store with reviewed cases, its exports, data sets of every form, pictures, a proxy, and odd things."""
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (2, 2)).save(images / "1.png")
    (images / "link.png").symlink_to("../../outside/picture.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    (images / "loop.png").symlink_to("loop.png")
    (images / "out").symlink_to("../../outside")
    for form, (first, second) in RIGHT.items():
        (folder / f"{form}.json").write_bytes(content(form, first))
        (folder / f"{form}-2.json").write_bytes(content(form, second))
    tiny_proxy(folder / "proxy")
    with Store(f"sqlite:///{folder / 'store.db'}") as store:
        without = {"pictures": []}  # most cases: every run copies what lies here
        store.add([drawn_case(n, flagged=n % 2 == 0, sampled=n % 3 > 0, **without if n > 3 else {}) for n in range(24)])
        for number in range(20):
            store.review(str(UUID(int=number + 1)), "correct" if number % 3 else "wrong", "ada")
        for form in export.FORMATS:
            export.write(store, folder / form, form)
    (folder / "empty").mkdir()
    (folder / "empty.json").touch()
    (folder / "notes.txt").write_text("no database, no JSON")
    (folder / "sign-in.toml").write_text("[auth]\nredirect_uri = 1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World.made(tmp_path_factory.mktemp("fuzz") / "world")
    Image.new("RGB", (3, 3)).save(made.outside / "picture.png")
    furnish(made.template)
    return made


@pytest.fixture(autouse=True)
def at_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, no cache and no home of whoever runs the tests; the caches of libraries lie in the run's folder."""
    for name in [name for name in os.environ if name.startswith("FASTRM_")]:
        monkeypatch.delenv(name)
    world.fresh()
    monkeypatch.chdir(world.work)
    monkeypatch.setenv("HOME", str(world.home))
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(world.work / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")


# --- loaders -------------------------------------------------------------------------------------------------------


def check_loading(make: Callable[[], Dataset]) -> None:
    """Samples that can be written and drawn on, whose pictures lie in the folder of pictures; or one sentence."""
    try:
        data = make()
    except FastRMError as error:
        check_sentence(printable(str(error)))  # a file's name may hold a line break
        return
    assert len(data) == len(list(data)) > 0
    for sample in data:
        said = [sample.id, sample.picture_id, sample.question, sample.group, *sample.answers]
        assert all(type(one) is str and one.encode() is not None for one in said)
        assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in sample.boxes)
        assert data.right(sample, "yes") in (True, False, None)
        try:
            size = sample.picture().size
        except FastRMError as error:
            check_sentence(str(error))
        else:
            # A link may lead out of the folder, as in many copies of COCO; a name in a questions file may not.
            assert size == (2, 2) or sample.picture_id.split("/")[0].split(".")[0] in ("link", "out")


@pytest.mark.parametrize("form", LOADERS)
@budget(few=30, many=700)
@given(data=st.data())
def test_loaders(world: World, form: str, data: st.DataObject) -> None:
    """Files of any form with anything in any place, or damaged at any byte, are samples or a sentence."""
    TALLY[f"loader {form}"] += 1
    files = list(RIGHT[form])
    for _ in range(data.draw(st.integers(0, 3))):
        which = data.draw(st.integers(0, 1))
        files[which] = fuzzing.spoil(files[which], data.draw)
    contents = [content(form, one) for one in files]
    for which in range(2):
        if data.draw(st.integers(0, 2)) == 0:
            contents[which] = fuzzing.spoil_bytes(contents[which], data.draw)
    first, second = world.work / "first.json", world.work / "second.json"
    with world.contained():
        first.write_bytes(contents[0])
        second.write_bytes(contents[1])
        check_loading(lambda: LOADERS[form](first, second, world.work / "images"))


PICTURE_NAMES = (
    "../../outside/picture.png", "..\\..\\outside\\picture.png", "/etc/passwd", "out/picture.png", "link.png",
    "loop.png", "dangling.png", "images", ".", "1.png/", "1.png/1.png", "./1.png", "C:1.png", "\\\\host\\1.png",
    "1.png\0", "1" * 999, "1", 1, "01", "1.PNG", "\u0661", "~/1.png", "out/../1.png", "%2e%2e/1.png", "1.png\n",
    "COCO_val2014_000000000001.jpg",
)  # fmt: skip


@pytest.mark.parametrize("form", LOADERS)
@budget(few=30, many=150)
@given(name=st.sampled_from(PICTURE_NAMES) | fuzzing.texts, absolute=st.booleans())
def test_picture_names(world: World, form: str, name: str | int, absolute: bool) -> None:
    """No name of a picture leads out of the folder of pictures."""
    TALLY["picture names"] += 1
    key = {"vqav2": "image_id", "gqa": "imageId", "pope": "image", "jsonl": "image"}[form]
    named = f"{world.outside}/{name}" if absolute else name
    rows = json.loads(as_json(RIGHT[form][0]), object_hook=lambda row: {**row, key: named} if key in row else row)
    (world.work / "first.json").write_bytes(content(form, rows))
    (world.work / "second.json").write_bytes(content(form, RIGHT[form][1]))
    with world.contained():
        check_loading(
            lambda: LOADERS[form](world.work / "first.json", world.work / "second.json", world.work / "images")
        )


@budget(few=20, many=400)
@given(data=st.data())
def test_shards(world: World, data: st.DataObject) -> None:
    """GQA in shards: folders with any names in them and any of the files damaged."""
    TALLY["loader gqa shards"] += 1
    folder = world.fresh()
    with world.contained():
        for which, name in enumerate(("asked", "graphs")):
            (folder / name).mkdir()
            for number, (key, value) in enumerate(RIGHT["gqa"][which].items()):
                shard = as_json(
                    fuzzing.spoil({key: value}, data.draw) if data.draw(st.integers(0, 2)) == 0 else {key: value}
                )
                if data.draw(st.integers(0, 3)) == 0:
                    shard = fuzzing.spoil_bytes(shard, data.draw)
                stem = data.draw(
                    st.sampled_from([f"{number}", f"s_{number}", "9" * 200, "\u0661", "\x1b[31m", "\udcff", "a\nb"])
                )
                (folder / name / f"{stem}.json").write_bytes(shard)
        if data.draw(st.integers(0, 5)) == 0:
            (folder / "asked" / "link.json").symlink_to("../../outside/secret.txt")
        if data.draw(st.integers(0, 5)) == 0:
            (folder / "asked" / "folder.json").mkdir()
        graphs = data.draw(st.sampled_from([folder / "graphs", folder / "graphs", None, folder / "empty", folder]))
        check_loading(lambda: GQA(folder / "asked", folder / "images", graphs))


@pytest.mark.parametrize("form", export.FORMATS)
@budget(few=20, many=300)
@given(data=st.data())
def test_exports(world: World, form: str, data: st.DataObject) -> None:
    """A changed or damaged export in any format is a data set or a sentence, and so are the answers in it."""
    TALLY[f"export {form}"] += 1
    folder = world.work / form
    file = world.template / form / export.FILES[form]
    whole = file.read_bytes()
    if form == "parquet":
        spoilt = fuzzing.spoil_bytes(whole, data.draw)
    else:
        rows = [json.loads(line) for line in whole.splitlines()[:12]]
        for _ in range(data.draw(st.integers(0, 3))):
            which = data.draw(st.integers(0, len(rows) - 1))
            rows[which] = fuzzing.spoil(rows[which], data.draw)
        spoilt = b"\n".join(map(as_json, rows))
        if data.draw(st.integers(0, 3)) == 0:
            spoilt = fuzzing.spoil_bytes(spoilt, data.draw)
    with world.contained():
        (folder / export.FILES[form]).write_bytes(spoilt)
        try:
            for sample in JSONL(folder):
                assert sample.question.encode()
        except FastRMError as error:
            check_sentence(str(error))
        try:
            answers = from_rows((row for _, row in read_rows(folder)), "cases")
            assert len(answers) > 0
        except FastRMError as error:
            check_sentence(str(error))


@budget(few=20, many=200)
@given(data=st.data())
def test_parquet_of_others(world: World, data: st.DataObject) -> None:
    """A Parquet file with columns of any type is a data set or a sentence."""
    import pyarrow as pa
    from pyarrow import parquet

    TALLY["export parquet, other columns"] += 1
    table = parquet.read_table(world.template / "parquet" / "cases.parquet").slice(0, 3)
    columns = st.sampled_from(
        [
            [1, 2, 3], [True, None, False], ["x", "", None], [b"\xff", b"", None], [[1], [], None], [{"a": 1}] * 3,
            [None] * 3, [1.5, float("nan"), float("inf")], [[{"b": [1]}]] * 3, [2**62] * 3,
        ]
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(table.column_names))
        if data.draw(st.booleans()):
            table = table.set_column(table.column_names.index(name), name, pa.array(data.draw(columns)))
        elif data.draw(st.booleans()):
            table = table.drop_columns([name])
        else:
            table = table.append_column(name, table[name])
            break
    file = world.work / "other.parquet"
    with world.contained():
        parquet.write_table(table, file)
        for read in (
            lambda: len(JSONL(file, world.work / "parquet")),
            lambda: len(from_rows((r for _, r in read_rows(file)), "f")),
        ):
            try:
                assert read() > 0
            except FastRMError as error:
                check_sentence(str(error))


# --- the proxy folder ----------------------------------------------------------------------------------------------


def check_proxy(folder: Path) -> None:
    """It is refused in a sentence, or it reads states, says a confidence, and its config has the documented types."""
    try:
        found = load_proxy(folder)
    except FastRMError as error:
        check_sentence(str(error))
        return
    with contextlib.suppress(ProxyError):  # as every engine does first
        check_model(found, hidden_size=WIDTH, image_token_id=4, norm=torch.nn.RMSNorm(WIDTH))
    config = found.config
    hints = get_type_hints(ProxyConfig)
    for name in ("hidden_size", "key_size", "projection_size", "match_size", "image_token_id", "grounding", "evidence"):
        assert type(getattr(config, name)) is hints[name], name
    for name in ("model_id", "model_type", "library_version"):
        assert type(getattr(config, name)) is str, name
    for name in ("norm", "training", "metrics"):
        assert type(getattr(config, name)) is dict, name
    assert type(config.label_threshold) in (int, float)
    json.dumps(config.as_dict())
    states, all_of = torch.ones(1, 3, WIDTH), torch.ones(1, 3, dtype=torch.bool)
    reading = found.proxy.read(states, all_of, all_of)
    assert reading.relevance.shape == (1, 3)
    assert all(value.shape == (1,) for value in reading.signals(all_of).values())
    if found.confidence is not None:
        features = dict.fromkeys((*found.confidence.features, "token_probability", "map_entropy"), 0.5)
        value, calibrated = found.confidence(features)
        assert 0 <= value <= 1
        assert calibrated is True


@pytest.mark.parametrize("name", ["config.json", "confidence.json"])
@budget(few=80, many=1200)
@given(data=st.data())
def test_proxy_json(world: World, name: str, data: st.DataObject) -> None:
    """`config.json` and `confidence.json` with any value in any field, or damaged, are as documented or refused."""
    TALLY[f"proxy {name}"] += 1
    file = world.work / "proxy" / name
    raw = json.loads((world.template / "proxy" / name).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()) or not isinstance(raw, dict) or not raw:
            raw = fuzzing.spoil(raw, data.draw)
        else:
            raw[data.draw(st.sampled_from(sorted(raw)))] = data.draw(fuzzing.values)
    spoilt = as_json(raw)
    if data.draw(st.integers(0, 5)) == 0:
        spoilt = fuzzing.spoil_bytes(spoilt, data.draw)
    with world.contained(), fuzzing.memory(MOST_MEMORY):
        file.write_bytes(spoilt)
        check_proxy(world.work / "proxy")
    file.write_bytes((world.template / "proxy" / name).read_bytes())


TYPES = (
    None, True, False, 0, 1, -1, 7, 64.0, 0.5, float("nan"), float("inf"), 10**12, 10**400, "", "16", "x" * 5000, [],
    [1], {}, {"a": 1},
)  # fmt: skip
"""Of every type of JSON some values."""


@pytest.mark.parametrize("name", ["config.json", "confidence.json"])
def test_proxy_types(world: World, name: str) -> None:
    """Every field of both files by every type: true is no number, a number is no text, no size takes gigabytes."""
    file = world.work / "proxy" / name
    raw = json.loads((world.template / "proxy" / name).read_text())
    with world.contained(), fuzzing.memory(MOST_MEMORY):
        for field, value in product(raw, TYPES):
            TALLY[f"proxy {name}"] += 1
            file.write_bytes(as_json({**raw, field: value}))
            check_proxy(world.work / "proxy")


TENSORS: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    lambda value, other: other,
    lambda value, other: value.double() * 1e300,
    lambda value, other: value.half(),
    lambda value, other: value.bool(),
    lambda value, other: value.long(),
    lambda value, other: value.to(torch.float8_e4m3fn),
    lambda value, other: value.to(torch.complex64),
    lambda value, other: torch.full_like(value, torch.nan),
    lambda value, other: torch.full_like(value, -torch.inf),
    lambda value, other: value.reshape(-1, 1),
    lambda value, other: value[None],
    lambda value, other: value.flatten()[:0],
    lambda value, other: torch.zeros(3, 0),
)
"""What another tensor may be in the place of one of the file's."""


@budget(few=60, many=1000)
@given(data=st.data())
def test_proxy_weights(world: World, data: st.DataObject) -> None:
    """Weights cut, lengthened, exchanged, of another type or shape, or not finite, are refused or read as float32."""
    TALLY["proxy weights"] += 1
    file = world.work / "proxy" / "proxy.safetensors"
    whole = (world.template / "proxy" / "proxy.safetensors").read_bytes()
    what = data.draw(st.integers(0, 2))
    if what == 0:
        spoilt = fuzzing.spoil_bytes(whole, data.draw)
    elif what == 1:  # the header, which says where the tensors lie
        length = int.from_bytes(whole[:8], "little")
        header = as_json(fuzzing.spoil(json.loads(whole[8 : 8 + length]), data.draw))
        stated = data.draw(st.sampled_from([len(header), len(header), len(header), 0, 2**63, len(header) + 1]))
        spoilt = stated.to_bytes(8, "little") + header + whole[8 + length :]
    else:
        tensors = load(whole)
        for _ in range(data.draw(st.integers(1, 2))):
            one, other = (data.draw(st.sampled_from(sorted(tensors))) for _ in range(2))
            value = tensors[one]
            change = data.draw(st.sampled_from(TENSORS))
            tensors[one] = change(value, tensors[other])
        spoilt = save({name: value.contiguous().clone() for name, value in tensors.items()})
    with world.contained(), fuzzing.memory(MOST_MEMORY):
        file.write_bytes(spoilt)
        check_proxy(world.work / "proxy")
    file.write_bytes(whole)


# --- the command line ----------------------------------------------------------------------------------------------

COMMANDS: dict[tuple[str, ...], Any] = {}
for _name, _command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
    for _more, _one in getattr(_command, "commands", {}).items():
        COMMANDS[_name, _more] = _one
    if not hasattr(_command, "commands"):
        COMMANDS[(_name,)] = _command

KNOWN = {name[0] for name in COMMANDS}

FILES_READ = (
    "images", "images/1.png", "images/loop.png", "images/link.png", "images/dangling.png", "vqav2.json",
    "vqav2-2.json", "gqa.json", "gqa-2.json", "pope.json", "jsonl.json", "jsonl", "parquet", "parquet/cases.parquet",
    "datasets", "empty", "empty.json", "notes.txt", "proxy", "proxy/config.json", "store.db", "sign-in.toml", "nowhere",
    "../outside", "../outside/secret.txt", "../outside/picture.png", "/dev/null", "/proc/self/environ", "/", ".", "",
)  # fmt: skip
FILES_WRITTEN = (
    "out", "out", "out", "out/of/many", "empty", "notes.txt", "notes.txt/in", "images", "store.db", ".", "a b", "[red]",
    "\u202e", "\udcff", "a\nb", "x" * 300, "/dev/full", "/dev/null", "/dev/null/x", "/proc/nobody/x", "out.png",
)  # fmt: skip
STORES = (
    "sqlite:///store.db", "sqlite:///store.db", "sqlite:///store.db", "sqlite:///new.db", "sqlite:///nowhere/x.db",
    "sqlite:///notes.txt", "sqlite:///images", "sqlite:///../outside/secret.txt", "sqlite:///empty.json", "sqlite://",
    "sqlite:///:memory:", "sqlite://store.db", "sqlite:///store.db?mode=ro", "sqlite:///file:store.db?mode=ro&uri=true",
    "sqlite:///store.db?timeout=x", "sqlite:///\udcff.db", "sqlite:///a\nb.db", "store.db", "mysql://u@h/d",
    f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", f"postgresql://u:{PASSWORD}@127.0.0.1:99999/d",
    f"postgresql://u:{PASSWORD}@x@127.0.0.1:1/d", f"postgresql://u:{PASSWORD}/@127.0.0.1:1/d",
    "postgresql:///d?host=/nowhere",
    f"postgresql+psycopg://127.0.0.1:1/d?password={PASSWORD}", f"postgresql://u:{PASSWORD}@127.0.0.1:x/d",
    f"postgresql://127.0.0.1:1/d?{PASSWORD}",
)  # fmt: skip
USUAL: dict[str, tuple[str, ...]] = {
    "output": FILES_WRITTEN,
    "overlay": FILES_WRITTEN,
    "cache": FILES_WRITTEN,
    "store": STORES,
    "proxy": ("proxy", "proxy", str(PROXY_FOLDER), *FILES_READ),
    "model": ("embedded", "embedded", "images", "./images", "./nowhere", "~/x", "org/model", "proxy"),
    "question": ("is there a red circle?", "is it?", " ", "x" * 3000, "<image>", "<image><image>", "USER:", "</s>"),
    "dataset": ("scenes", "vqav2", "gqa", "pope", "jsonl", "jsonl", "SCENES"),
    "kinds": ("natural", "all", "natural,noise", "natural,,", "nobody", ""),
    "calibrate_kinds": ("natural", "natural,habit_free", "nobody"),
    "sections": ("all", "none", "cost", "cost,layers", "nobody", ""),
    "form": ("query-row", "self-attention", "jsonl", "parquet", "datasets"),
    "targets": ("centred", "soft", "hard"),
    "since": ("2020-01-01", "2020-01-01T10:00", "0001-01-01", "9999-12-31T23:59:59", "2020-13-45", "yesterday"),
    "older_than": ("30d", "0d", "12h", "999999w", "1m", "-1d", "1y", "d"),
    "case": (str(UUID(int=1)), "nobody", str(UUID(int=1)).upper()),
    "host": ("127.0.0.1", "localhost", "::1", "0.0.0.0", "x" * 70, "..", "999.1.1.1"),
    "flag_rate": ("0.1", "0.5", "0", "1", "-1", "nan"),
    "precision": ("0.3", "0.9", "0", "2", "inf"),
    "risk": ("0.9", "0.05", "1e-300", "nan"),
    "confidence": ("0.5", "0.9", "1", "nan", "1e400"),
    "max_new_tokens": ("1", "2", "0", "-1"),
    "count": ("1", "0"),
    "auth": ("sign-in.toml", "nowhere.toml", "images", "notes.txt", "/dev/null"),
}
"""Right and nearly right values, by option; of the others words and the names of files."""
WHERE_WRITTEN = ("output", "overlay", "cache")
"""Options whose every value is within the run's folder: who names another place means it."""
FIXED = {
    "max_new_tokens": "a long answer takes long",
    "store": "would make files wherever the word says",
}
"""Options that take no other words than the usual ones, and why."""


@st.composite
def command_lines(draw: st.DrawFn, chosen: tuple[tuple[str, ...], ...] = tuple(COMMANDS)) -> list[str]:
    """A command with options that are right, nearly right and hostile."""
    name = draw(st.sampled_from(chosen))
    said = list(name)
    for option in COMMANDS[name].params:
        often = 9 if option.required else 3
        for _ in range(draw(st.integers(1, 2)) if getattr(option, "multiple", False) else 1):
            if draw(st.integers(0, 9)) >= often:
                continue
            switch = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
            if getattr(option, "is_flag", False):
                said.append(switch)
                continue
            usual = st.sampled_from(USUAL.get(option.name, FILES_READ))
            free = option.name not in WHERE_WRITTEN and option.name not in FIXED
            value = draw(fuzzing.words if free and draw(st.integers(0, 3)) == 0 else usual)
            said += draw(st.sampled_from([[switch, value], [f"{switch}={value}"]]))
    if draw(st.integers(0, 7)) == 0:
        said.insert(draw(st.sampled_from([0, len(name), len(said)])), draw(fuzzing.words))
    return said


QUICK = tuple(name for name in COMMANDS if name[0] in ("db", "export", "calibrate"))
"""Commands that start without a model's libraries."""
SET = ("FASTRM_PROXY", "FASTRM_AUTH", "FASTRM_MODEL", "FASTRM_READ_ONLY", "FASTRM_THRESHOLD")


class StoppedError(FastRMError):
    """The run came to where a model would be asked thousands of questions."""


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Commands without what takes seconds: loading the model again, labelling, thousands of scenes, another process.

    Where few inputs are tried, without a model.
    """
    load, draw = ask.load_lvlm, scene_set.scenes

    def stop(*_: object, **__: object) -> NoReturn:
        raise StoppedError("Stopped here.")

    class Served:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            assert all("\0" not in word for word in [*command, *env.values()])

        def wait(self) -> int:
            return 0

        def poll(self) -> int:
            return 0

    embedded = request.getfixturevalue("embedded") if THOROUGH else None

    def load_lvlm(name: str, device: str | None = None) -> tuple[Any, Any]:
        return (embedded or stop()) if name == ask.EMBEDDED else load(name, device)

    monkeypatch.setattr(ask, "load_lvlm", load_lvlm)
    monkeypatch.setattr(labels, "make_labels", stop)
    monkeypatch.setattr(lab_evaluate, "make_labels", stop)
    monkeypatch.setattr(run, "_requests", stop)
    monkeypatch.setattr(scene_set, "scenes", lambda kind, seed, count, asked: draw(kind, seed, min(count, 2), asked))
    monkeypatch.setattr(serve, "subprocess", SimpleNamespace(Popen=Served))


def typed(said: list[str], answers: str = "") -> tuple[object, str, str]:
    """The console script in this process: exit code, standard output, standard error."""
    streams = Streams(answers)
    with pytest.MonkeyPatch.context() as patch, streams.standing_in():
        patch.setattr(sys, "argv", ["fastrm-monitor", *said])
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    return code, *streams.said()


@budget(few=60, many=2500)
@given(
    said=command_lines(),
    answers=st.sampled_from(["", "y\n", "n\n", "maybe\n"]),
    environment=st.none()
    | st.none()
    | st.none()
    | st.tuples(st.just("FASTRM_STORE"), st.sampled_from(STORES))
    | st.tuples(st.sampled_from(SET), fuzzing.words),
    dotenv=st.sampled_from([*[None] * 9, b"FASTRM_STORE=\xff\n", b"FASTRM_THRESHOLD=x", b"\0", b"=", b"FASTRM_"]),
)
@example(["db", "purge", "--older-than=999999w", "-y"], "", None, None)
@example(["db", "upgrade"], "", None, b"FASTRM_STORE=\xff\n")
@example(["dashboard", "--store=sqlite:///store.db", "--host", "x" * 70, "--allow-remote"], "", None, None)
@example(["demo", "--output", "\udcff"], "", None, None)
@example(["export", "--output", "a\nb", "--store", "sqlite:///store.db", "--all"], "", None, None)
def test_command_line(
    world: World,
    instant: None,
    said: list[str],
    answers: str,
    environment: tuple[str, str] | None,
    dotenv: bytes | None,
) -> None:
    """Whatever is typed, no command ends in a traceback, shows a password or changes anything but what it was given."""
    TALLY[f"command {next(word for word in said if word in KNOWN)}"] += 1
    folder = world.fresh()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        if environment is not None:
            patch.setenv(*environment)
        with world.contained():
            if dotenv is not None:
                (folder / ".env").write_bytes(dotenv)
            code, out, err = typed(said, answers)
    check_output(code, out, err)
    assert PASSWORD not in out + err


@budget(few=2, many=15)
@given(said=command_lines(QUICK if not THOROUGH else (*QUICK, ("doctor",), ("score",))))
def test_command_line_of_a_process(world: World, said: list[str]) -> None:
    """The installed command is no other."""
    TALLY["command, as a process"] += 1
    folder = world.fresh()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with world.contained():
        ended = subprocess.run(
            [sys.executable, "-B", "-m", "fastrm_monitor.cli", *said],
            cwd=folder,
            env=environment,
            input=b"",
            capture_output=True,
            timeout=120,
            check=False,
        )
    out, err = (stream.decode("utf-8", "replace") for stream in (ended.stdout, ended.stderr))
    check_output(ended.returncode, out, err)
    assert PASSWORD not in out + err


# --- links into the dashboard --------------------------------------------------------------------------------------

PARAMETERS = ("case", "kind", "state", "order", "range", "reviewer", "page", "embed", "_")


@st.composite
def addresses(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Parameters as they stand in an address, some of them several times."""
    known = ("open", "all", "flagged", "newest", "7d", "24h", str(UUID(int=1)), str(UUID(int=3)), "nobody")
    names = st.just("case") | st.sampled_from(PARAMETERS[:5]) | st.sampled_from(PARAMETERS) | fuzzing.texts
    said = st.sampled_from(known) | fuzzing.texts | st.sampled_from(fuzzing.NUMBERS)
    return draw(st.lists(st.tuples(names, said), max_size=5))


def query_of(parameters: list[tuple[str, str]], spoil: bytes = b"") -> str:
    """The query of an address, as a browser writes it, or spoilt."""
    pairs = [
        (name.encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass")) for name, value in parameters
    ]
    return urlencode(pairs) + quote_from_bytes(spoil, safe="&=%+;")


def test_no_character(world: World, served: Store) -> None:
    """A link with a NUL, which PostgreSQL does not take, names no case, like any other wrong link."""
    for query in ("case=%00", f"case=%00{UUID(int=99)}"):
        check_link(served, query)


def check_link(store: Store, query: str) -> None:
    """What the pages ask of a link: a case that there is, or none, and what they show of it is inert."""
    streamlit.query_params.from_dict(_parse_query_string(query))
    wanted = state.linked_case()
    with store.session() as session:
        view = queries.case(session, wanted)
        others, _ = related.same_picture(session, wanted, 6)
        queries.place(session, queries.Queue(), wanted, "session")
        queries.step(session, queries.Queue(), wanted, forward=True, seat="session")
    assert view is None or view.case_id == wanted
    assert view is not None or others == []
    assert claims.claim(store, wanted, wanted, "session") is None
    shown = words.inert(f"There is no case {wanted[:64]} in this store.")
    assert not re.search('<(?!/?bdi|span class="frm-mark"|/span)', shown)
    left = set(shown) - set("\n\t\u200c\u200d")
    assert not {unicodedata.category(one) for one in left} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@budget(few=60, many=1500)
@given(parameters=addresses(), spoil=st.binary(max_size=8))
def test_links(world: World, parameters: list[tuple[str, str]], spoil: bytes) -> None:
    """Any text in any parameter of a link is looked for as a case and not found, or found, and shown inert."""
    TALLY["links"] += 1
    with world.contained(), Store(f"sqlite:///{world.work / 'store.db'}") as store:
        check_link(store, query_of(parameters, spoil))


@budget(few=10, many=300)
@given(parameters=addresses(), spoil=st.binary(max_size=8))
def test_links_on_postgresql(served: Store, parameters: list[tuple[str, str]], spoil: bytes) -> None:
    """So it is on PostgreSQL, which does not take every character."""
    TALLY["links, PostgreSQL"] += 1
    check_link(served, query_of(parameters, spoil))


@pytest.fixture(scope="module")
def served(postgres: Any) -> Iterator[Store]:
    """A store on PostgreSQL with a few cases."""
    postgres.psql("CREATE DATABASE fuzzed")
    with Store(postgres.get_uri("fuzzed")) as store:
        store.add([drawn_case(n) for n in range(3)])
        yield store
    postgres.psql("DROP DATABASE fuzzed WITH (FORCE)")


@pytest.mark.parametrize("page", ["", pages.QUEUE, pages.CASE, pages.HEALTH])
@budget(few=1, many=12)
@given(parameters=addresses())
def test_pages(world: World, monkeypatch: pytest.MonkeyPatch, page: str, parameters: list[tuple[str, str]]) -> None:
    """Every page opens by any link, and runs nothing that stands in it."""
    TALLY["pages"] += 1
    monkeypatch.setenv("FASTRM_STORE", f"sqlite:///{world.work / 'store.db'}")
    together: dict[str, Any] = {}
    for name, value in [*parameters, ("case", "<script>alert(1)</script>"), ("case", str(UUID(int=1)))][-4:]:
        together.setdefault(name, []).append(value)
    try:
        with world.contained():
            at = pages.opened(page, **together)
            assert "alert(1)</script>" not in pages.shown(at)
    finally:
        streamlit.cache_resource.clear()


# --- the tally -----------------------------------------------------------------------------------------------------


def test_tally(capsys: pytest.CaptureFixture[str]) -> None:
    """`make fuzz` tries at least 10,000 inputs."""
    total = sum(TALLY.values())
    with capsys.disabled():
        sys.stdout.write("\n" + "".join(f"{n:7,} inputs: {target}\n" for target, n in sorted(TALLY.items())))
        sys.stdout.write(f"{total:7,} inputs in all\n")
    assert not THOROUGH or total >= 10_000
