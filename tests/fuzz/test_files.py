"""Data sets, exports and proxy folders, spoilt: they are read, or one sentence says what is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from fastrm_monitor.calibration.answers import from_rows
from fastrm_monitor.errors import FastRMError, ProxyError
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.exported import read_rows
from fastrm_monitor.lab.datasets.gqa import GQA
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.records import export
from fastrm_monitor.scoring.checkpoint import check_model, load_proxy
from fastrm_monitor.scoring.proxy import ProxyConfig
from fastrm_monitor.terminal import printable
from tests import fuzzing
from tests.fuzzing import TALLY, WIDTH, World, as_json, budget, check_sentence
from tests.test_hostile_files import LOADERS, RIGHT, content

MOST_MEMORY = 2**30
"""Bytes that reading a proxy of a few kilobytes may take, whatever sizes its config makes up."""


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
    lambda value, other: torch.ones(value.shape).to(torch.float8_e4m3fn),
    lambda value, other: value.to(torch.complex64),
    lambda value, other: torch.full(value.shape, torch.nan),
    lambda value, other: torch.full(value.shape, -torch.inf),
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
