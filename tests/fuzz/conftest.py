"""A world of files to spoil, and nothing of whoever runs the tests."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest
import torch
from PIL import Image

from fastrm_monitor.records import export
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.checkpoint import save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from tests.conftest import drawn_case
from tests.fuzzing import WIDTH, World
from tests.test_hostile_files import RIGHT, content


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
