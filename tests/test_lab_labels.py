"""Labels on disk: made once, whole, and never mistaken for another model's."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab import labels as lab
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.lab.datasets.scene_files import write_jsonl
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.labels import Labels, LeftOut, default_cache, make_labels
from fastrm_monitor.lab.teacher import Teacher
from tests.tiny import Listed, made_up_labels, tiny_asker

SHARD = 8


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_SHARD", SHARD)


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each batch that the teacher explains."""
    seen: list[int] = []
    real = Teacher.explain

    def watched(self: Teacher, inputs: dict, *rest: object) -> object:
        seen.append(len(inputs["input_ids"]))
        return real(self, inputs, *rest)

    monkeypatch.setattr(Teacher, "explain", watched)
    return seen


def samples(count: int = 20) -> list[Sample]:
    return list(SceneSet(["natural"], pictures=8, seed=5))[:count]


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/shard-*.safetensors"))


def same(one: Labels, other: Labels) -> bool:
    rows = list(range(len(one)))
    first, second = one.batch(rows), other.batch(rows)
    tensors = all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))
    return one.facts == other.facts and tensors


def test_what_is_kept(tmp_path: Path) -> None:
    """A label has the model's states, the teacher's map, the answer, and what the data set says of it."""
    asker, data = tiny_asker(), Listed(samples(5))
    made = make_labels(asker, data, tmp_path, batch=3)
    assert len(made) == 5
    for row, sample in enumerate(data):
        inputs = asker.inputs([sample.picture()], [sample.question])
        alone = Teacher(asker.model).explain(inputs)
        batch = made.batch([row])
        assert torch.allclose(batch.states[0], alone.states[0], atol=5e-3)
        assert torch.allclose(batch.targets[0], alone.relevance[0], atol=1e-3)
        assert torch.equal(batch.image[0], alone.image[0])
        assert batch.valid.all()
        (said,) = asker.answer(inputs)
        facts = made.facts[row]
        assert (facts.id, facts.picture_id, facts.group) == (sample.id, sample.picture_id, sample.group)
        assert (facts.answer, facts.right) == (said.text, said.text == sample.answers[0])
        assert (facts.boxes, facts.size) == (sample.boxes, (64, 64))
        looked = float(alone.image_attention[0])
        assert facts.numbers == pytest.approx({**said.numbers, "image_attention": looked}, abs=1e-4)


def test_right_answers_are_marked(tmp_path: Path) -> None:
    """What the model says is marked right when it is the reference, and wrong otherwise."""
    asker, (one, other, *_) = tiny_asker(), samples()
    says = asker.ask([one.picture()], one.question)
    data = Listed([replace(one, answers=(says,)), replace(other, answers=("nonsense",))])
    assert [facts.right for facts in make_labels(asker, data, tmp_path).facts] == [True, False]


def test_second_run_reads_the_cache(tmp_path: Path, explained: list[int]) -> None:
    """The second run asks neither model nor teacher, and gives the same labels."""
    asker, data = tiny_asker(), Listed(samples(20))
    first = make_labels(asker, data, tmp_path, batch=4)
    assert sum(explained) == 20
    assert len(shards(tmp_path)) == 3
    explained.clear()
    assert same(make_labels(tiny_asker(), data, tmp_path, batch=4), first)
    assert explained == []


def test_broken_off_run_goes_on(tmp_path: Path, explained: list[int]) -> None:
    """A run that stops in the third shard leaves the first two whole; the next run makes the third only."""
    chosen = samples(20)

    def stop() -> Image.Image:
        raise KeyboardInterrupt

    broken = [*chosen[:18], replace(chosen[18], picture=stop), chosen[19]]
    with pytest.raises(KeyboardInterrupt):
        make_labels(tiny_asker(), Listed(broken), tmp_path, batch=4)
    assert [path.name for path in shards(tmp_path)] == ["shard-00000.safetensors", "shard-00001.safetensors"]
    explained.clear()
    made = make_labels(tiny_asker(), Listed(chosen), tmp_path, batch=4)
    assert sum(explained) == 4
    assert [facts.id for facts in made.facts] == [sample.id for sample in chosen]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}


def test_unknown_truth_is_left_out(tmp_path: Path) -> None:
    """A question of whose answer nobody knows whether it is right teaches nothing, and is counted."""

    class HalfKnown(Listed):
        def right(self, sample: Sample, answer: str) -> bool | None:  # type: ignore[override]
            return None if sample.id == known[0].id else True

    known, said = samples(3), io.StringIO()
    with Progress(console=Console(file=said, width=200)) as bar:
        made = make_labels(tiny_asker(), HalfKnown(known), tmp_path, progress=bar)
    assert [facts.id for facts in made.facts] == [sample.id for sample in known[1:]]
    assert "1 of 3 questions left out; first: whether" in said.getvalue()


@pytest.mark.parametrize("content", [b"", b"no shard", None])
def test_corrupt_shard_is_made_again(tmp_path: Path, explained: list[int], content: bytes | None) -> None:
    """A shard that is empty, something else or truncated is made again; the others are not."""
    data = Listed(samples(20))
    first = make_labels(tiny_asker(), data, tmp_path, batch=4)
    expected = first.batch(range(20))
    path = shards(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    explained.clear()
    again = make_labels(tiny_asker(), data, tmp_path, batch=4)
    assert sum(explained) == SHARD
    assert torch.equal(again.batch(range(20)).targets, expected.targets)
    assert again.facts == first.facts


def unreadable() -> Image.Image:
    raise DataError("picture-7.png cannot be read.")


def test_unreadable_picture_is_left_out(tmp_path: Path) -> None:
    """A picture that cannot be read costs its own question only, and the console names the first of them."""
    chosen = samples(10)
    data = Listed([*chosen[:3], replace(chosen[3], picture=unreadable), *chosen[4:]])
    said = io.StringIO()
    made = make_labels(tiny_asker(), data, tmp_path, batch=4, progress=Progress(console=Console(file=said, width=200)))
    assert [facts.id for facts in made.facts] == [one.id for one in chosen if one is not chosen[3]]
    assert "1 of 10 questions left out; first: picture-7.png cannot be read." in said.getvalue()
    targets = make_labels(tiny_asker(), Listed(chosen, "whole"), tmp_path).batch([4]).targets
    assert torch.allclose(made.batch([3]).targets, targets, atol=1e-3)


def told(data: Listed, cache: Path) -> tuple[LeftOut, str]:
    """What the labels and the console say of questions that were left out."""
    said = io.StringIO()
    made = make_labels(tiny_asker(), data, cache, batch=4, progress=Progress(console=Console(file=said, width=40)))
    return made.left_out, said.getvalue()


def test_left_out_questions_are_kept_in_mind(tmp_path: Path, explained: list[int]) -> None:
    """The number of questions without a label, and why, is said again by a run that reads the cache."""
    chosen = samples(20)
    data = Listed([*chosen[:11], *(replace(one, picture=unreadable) for one in chosen[11:14]), *chosen[14:]])
    expected = LeftOut(3, 20, "picture-7.png cannot be read.")
    for _ in range(2):
        left_out, said = told(data, tmp_path)
        assert left_out == expected
        assert "3 of 20 questions left out; first: picture-7.png cannot be read." in said
    assert sum(explained) == 17
    assert told(Listed(chosen, "whole"), tmp_path) == (LeftOut(0, 20), "")


def test_left_out_in_shards_that_do_not_say(tmp_path: Path) -> None:
    """Shards that were written without a reason still give the number; so does a shard that is not there at all."""
    chosen = samples(20)
    data = Listed(
        [replace(one, picture=unreadable) if n in (3, *range(8, 16)) else one for n, one in enumerate(chosen)]
    )
    told(data, tmp_path)
    for path in shards(tmp_path):
        with safe_open(path, framework="pt") as opened:
            facts = opened.metadata()["facts"]
        save_file(load_file(path), path, metadata={"facts": facts})
    assert len(shards(tmp_path)) == 2
    # The middle shard is tried again each time, and says why.
    assert told(data, tmp_path)[0] == LeftOut(9, 20, "picture-7.png cannot be read.")
    assert Labels(shards(tmp_path), 20).left_out == LeftOut(9, 20, "")


@pytest.mark.parametrize("name", ["p/[/b].png", "[red]p.png", "a\nb\x1b[31m.png", "\udcff.png"])
def test_reason_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    """The name of a picture is never taken for markup, for a command to the terminal or for two lines."""

    def gone() -> Image.Image:
        raise DataError(f"There is no picture {name}.")

    chosen = samples(3)
    left_out, said = told(Listed([replace(chosen[0], picture=gone), *chosen[1:]]), tmp_path)
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in name)
    assert left_out.first == f"There is no picture {shown}."
    assert f"first: There is no picture {shown}." in said
    left_out.first.encode()


def test_overwritten_pictures_are_labelled_anew(tmp_path: Path, explained: list[int]) -> None:
    """Labels of pictures that were overwritten in place are not taken from the cache; those of the same ones are."""
    questions = write_jsonl(tmp_path / "own", "easy", pictures=2, seed=9)
    count = len(JSONL(questions))
    first = make_labels(tiny_asker(), JSONL(questions), tmp_path / "cache")
    make_labels(tiny_asker(), JSONL(questions), tmp_path / "cache")
    assert sum(explained) == count
    picture = questions.parent / "pictures" / "1.png"
    with picture.open("r+b") as opened:
        Image.new("RGB", (64, 64)).save(opened, "PNG")
        opened.truncate()
    again = make_labels(tiny_asker(), JSONL(questions), tmp_path / "cache")
    assert sum(explained) == 2 * count
    last = [count - 1]
    assert not torch.equal(again.batch(last).states, first.batch(last).states)


def test_no_picture_at_all(tmp_path: Path) -> None:
    """When no picture can be read there is nothing to go on with: one sentence with the first reason."""
    data = Listed([replace(one, picture=unreadable) for one in samples(3)])
    with pytest.raises(DataError, match=r"Not one question of listed could be used; first: picture-7\.png"):
        make_labels(tiny_asker(), data, tmp_path)


def test_no_questions(tmp_path: Path) -> None:
    """An empty data set is one sentence."""
    with pytest.raises(DataError, match="listed holds no questions"):
        make_labels(tiny_asker(), Listed([]), tmp_path)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A cache in whose place a file stands is one sentence that says what to choose."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another --cache"):
        make_labels(tiny_asker(), Listed(samples(3)), tmp_path / "file")


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that cannot be written is one sentence, and no half of it stays behind."""

    def full(_tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lab, "save_file", full)
    with pytest.raises(DataError, match="No space left on device"):
        make_labels(tiny_asker(), Listed(samples(3)), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _fine_tuned(_chosen: list[Sample]) -> dict[str, object]:
    asker = tiny_asker()
    projection = asker.model.model.language_model.layers[1].self_attn.v_proj.weight
    projection.data[8:] += 1e-3  # as merged low-rank adapters do: config and norms stay those of the base model
    return {"asker": asker}


OTHER_LABELS: dict[str, Callable[[list[Sample]], dict[str, object]]] = {
    "fine-tuned model": _fine_tuned,
    "other size": lambda chosen: {"asker": tiny_asker(layers=3)},
    "longer answers": lambda chosen: {"asker": tiny_asker(max_new_tokens=1)},
    "other question": lambda chosen: {"data": Listed([replace(chosen[0], question="is there a ring?"), *chosen[1:]])},
    "other right answer": lambda chosen: {"data": Listed([replace(chosen[0], answers=("no ring",)), *chosen[1:]])},
    "other name": lambda chosen: {"data": Listed(chosen, "renamed")},
}


@pytest.mark.parametrize("change", OTHER_LABELS.values(), ids=OTHER_LABELS)
def test_other_labels(
    tmp_path: Path, explained: list[int], change: Callable[[list[Sample]], dict[str, object]]
) -> None:
    """Labels of another model, prompt, question or right answer are not taken from the cache."""
    chosen = samples(4)
    make_labels(tiny_asker(), Listed(chosen), tmp_path)
    explained.clear()
    what = {"asker": tiny_asker(), "data": Listed(chosen), **change(chosen)}
    make_labels(what["asker"], what["data"], tmp_path)
    assert sum(explained) == 4


def test_batches_are_left_padded(tmp_path: Path) -> None:
    """Prompts of several lengths end in the same column; padding is zeros and not valid."""
    made = made_up_labels(tmp_path / "labels.safetensors", pictures=5)
    whole = made.batch(range(len(made)))
    lengths = whole.valid.sum(1)
    assert len(set(lengths.tolist())) > 1
    for row in range(len(made)):
        alone = made.batch([row])
        assert torch.equal(whole.states[row, -int(lengths[row]) :], alone.states[0])
        assert torch.equal(whole.targets[row, -int(lengths[row]) :], alone.targets[0])
        assert torch.equal(whole.image[row, -int(lengths[row]) :], alone.image[0])
        assert not whole.states[row, : -int(lengths[row])].any()
    assert whole.states.dtype == whole.targets.dtype == torch.float32
    parts = list(made.batches([7, 3, 11, 2], 3))
    assert [list(rows) for rows, _ in parts] == [[7, 3, 11], [2]]
    assert np.array_equal(parts[1][1].states[0], made.batch([2]).states[0])


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Labels go to the user's cache folder, wherever that is set to be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fastrm-monitor" / "labels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "fastrm-monitor" / "labels"
