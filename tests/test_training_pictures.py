"""A proxy that is tested on the pictures it was made of is found out; one that is not is left in peace."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.lab.datasets.pope import POPE
from fastrm_monitor.lab.datasets.scene_files import write_jsonl, write_pope, write_vqav2
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, TRAIN_SEED, SceneSet
from fastrm_monitor.lab.datasets.vqav2 import VQAv2
from fastrm_monitor.lab.training_pictures import FILE, pictures_in_training, remember
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from tests.tiny import tiny_scorer

SEED = 9


def made_of(folder: Path, data: str = "") -> ProxyFolder:
    """A proxy folder that says it was trained on `data`."""
    plain = tiny_scorer().folder
    return replace(plain, path=folder, config=replace(plain.config, training={"data": data}))


@pytest.fixture
def training(tmp_path: Path) -> VQAv2:
    """A data set of 6 pictures, which are remembered in `tmp_path`."""
    data = VQAv2(*write_vqav2(tmp_path / "vqav2", "natural", pictures=6, seed=SEED))
    remember(tmp_path, data)
    return data


def test_same_questions(tmp_path: Path, training: VQAv2) -> None:
    """All pictures of the training questions are known, and some when only some are asked about."""
    assert pictures_in_training(made_of(tmp_path), training) == 6
    files = (tmp_path / "vqav2" / name for name in ("questions.json", "annotations.json", "val2014"))
    some = VQAv2(*files, limit=5)
    pictures = {sample.picture_id for sample in some}
    assert 0 < len(pictures) < 6
    assert pictures_in_training(made_of(tmp_path), some) == len(pictures)


def test_other_questions_other_names(tmp_path: Path, training: VQAv2) -> None:
    """Pictures are known in another form's questions, in another folder and under other names."""
    (questions, *_), images = write_pope(tmp_path / "pope", "natural", pictures=6, seed=SEED)
    assert pictures_in_training(made_of(tmp_path), POPE(questions, images)) == 6
    own = write_jsonl(tmp_path / "own", "natural", pictures=4, seed=SEED)
    moved = shutil.move(own.parent, tmp_path / "moved")
    assert pictures_in_training(made_of(tmp_path), JSONL(Path(moved) / own.name)) == 4


def test_new_pictures(tmp_path: Path, training: VQAv2) -> None:
    """Other pictures under the same names are new, also when one has the very size of a known one."""
    questions, annotations, images = write_vqav2(tmp_path / "new", "natural", pictures=6, seed=SEED + 1)
    for file in images.iterdir():
        size = (tmp_path / "vqav2" / "val2014" / file.name).stat().st_size
        file.write_bytes(file.read_bytes()[:size].ljust(size, b"\0"))
    assert pictures_in_training(made_of(tmp_path), VQAv2(questions, annotations, images)) == 0


def test_scenes(tmp_path: Path) -> None:
    """Drawn scenes are known by the set's name: those for tests are not those for training, and leave no record."""
    data = SceneSet(["natural"], 3, TRAIN_SEED)
    remember(tmp_path, data)
    assert not (tmp_path / FILE).exists()
    assert pictures_in_training(made_of(tmp_path, data.name), data) == 3
    assert pictures_in_training(made_of(tmp_path, data.name), SceneSet(["natural"], 3, TEST_SEED)) == 0


def test_record_goes_with_the_proxy(tmp_path: Path, training: VQAv2) -> None:
    """A proxy made anew of scenes in the same folder does not inherit the pictures of the old one."""
    remember(tmp_path, SceneSet(["natural"], 3, TRAIN_SEED))
    assert pictures_in_training(made_of(tmp_path), training) == 0


@pytest.mark.parametrize("content", [None, b"half a reco"])
def test_without_a_record(tmp_path: Path, training: VQAv2, content: bytes | None) -> None:
    """Where there is no record, or part of one, the data set's name decides."""
    (tmp_path / FILE).unlink() if content is None else (tmp_path / FILE).write_bytes(content)
    assert pictures_in_training(made_of(tmp_path, training.name), training) == 6
    assert pictures_in_training(made_of(tmp_path, "another"), training) == 0


def test_folder_that_cannot_be_written(tmp_path: Path, training: VQAv2) -> None:
    """A record that cannot be written is one sentence."""
    with pytest.raises(FastRMError, match=r"training_pictures\.bin cannot be written: .*\.$"):
        remember(tmp_path / "gone", training)
