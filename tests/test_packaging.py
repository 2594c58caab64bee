"""What is installed: the wheel holds everything under one import name, and importing it costs next to nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def isolated(python, code, folder):
    """Run code with an interpreter that sees neither this folder nor this environment's variables."""
    return subprocess.run(
        [python, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_import_is_light(tmp_path):
    """`import fastrm_monitor` imports neither torch nor transformers and takes below 0.3 s (the best of five)."""
    code = """
import time
began = time.perf_counter()
import fastrm_monitor
print(time.perf_counter() - began)
import sys
print(sorted({"torch", "transformers", "numpy", "sqlalchemy", "streamlit"} & set(sys.modules)))
"""
    runs = [isolated(sys.executable, code, tmp_path).stdout.split("\n") for _ in range(5)]
    assert {run[1] for run in runs} == {"[]"}
    best = min(float(run[0]) for run in runs)
    print(f"import fastrm_monitor: {best:.3f} s, without torch")  # noqa: T201 - shown by pytest -rP
    assert best < 0.3


def test_public_names(tmp_path):
    """At most a dozen names, every one of which can be imported; a misspelt one is an AttributeError."""
    import fastrm_monitor

    assert len(fastrm_monitor.__all__) <= 12
    for name in fastrm_monitor.__all__:
        assert getattr(fastrm_monitor, name).__name__ == name
    assert set(fastrm_monitor.__all__) <= set(dir(fastrm_monitor))
    with pytest.raises(AttributeError, match="has no attribute 'instrumnet'"):
        fastrm_monitor.instrumnet  # noqa: B018


def test_every_package_is_listed():
    """A sub-package that pyproject.toml does not name works here and is missing from the wheel; none is."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for folder, name in (("fastrm_monitor", "fastrm_monitor"), ("dashboard", "fastrm_monitor.dashboard"),
                         ("integrations", "fastrm_monitor.integrations")):  # fmt: skip
        for file in (ROOT / folder).rglob("*.py"):
            below = file.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *below]))
    assert found == set(listed)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "tree"
    # A copy: setuptools builds inside the tree, and what an earlier build left there would find its way into the wheel.
    skipped = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "fastrm-demo")
    shutil.copytree(ROOT, source, ignore=skipped)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source],
        check=True, timeout=300,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_contents_of_the_wheel(wheel):
    """The wheel holds fastrm_monitor alone: code, migrations, embedded model (below 5 MB) and proxy; no pickle."""
    with zipfile.ZipFile(wheel) as opened:
        sizes = {one.filename: one.file_size for one in opened.infolist()}
    tops = {name.split("/")[0] for name in sizes}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastrm_monitor"}
    for needed in (
        "fastrm_monitor/py.typed",
        "fastrm_monitor/dashboard/screens/queue.py",
        "fastrm_monitor/integrations/hf.py",
        "fastrm_monitor/records/migrations/versions/0001_first.py",
        "fastrm_monitor/records/migrations/versions/0002_drift.py",
        "fastrm_monitor/lab/report/page.html",
        "fastrm_monitor/demo/model/model.safetensors",
        "fastrm_monitor/demo/model/tokenizer.json",
        "fastrm_monitor/demo/proxy/proxy.safetensors",
        "fastrm_monitor/demo/proxy/config.json",
        "fastrm_monitor/demo/proxy/confidence.json",
    ):
        assert needed in sizes
    model = sum(size for name, size in sizes.items() if name.startswith("fastrm_monitor/demo/model/"))
    assert model < 5_000_000
    assert not [name for name in sizes if re.search(r"\.(pt|pth|bin|pkl|pickle)$", name)]


def test_wheel_in_an_empty_environment(wheel, tmp_path):
    """With the core alone: all three packages import, `dashboard` does not, and commands name the extra they lack."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel],
        check=True, timeout=500,
    )  # fmt: skip
    done = isolated(python, "import fastrm_monitor, fastrm_monitor.integrations, fastrm_monitor.dashboard", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("dashboard", "integrations"):
        assert "ModuleNotFoundError" in isolated(python, f"import {name}", tmp_path).stderr
    assert "ModuleNotFoundError" in isolated(python, "import torch", tmp_path).stderr

    def command(*words):
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(
            [tmp_path / "venv" / "bin" / "fastrm-monitor", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip

    assert command("--help").returncode == 0
    done = command("db", "upgrade", "--store", "sqlite:///made.db")
    assert (done.returncode, "at version 0005" in done.stdout) == (0, True)
    assert command("doctor", "--store", "sqlite:///made.db").returncode == 0
    for words, extra in (
        (("demo",), "hf"),
        (("score", "--image", ROOT / "docs" / "overview.png", "--question", "what?"), "hf"),
        (("distill", "--output", "p"), "lab"),
        (("dashboard", "--store", "sqlite:///made.db"), "dashboard"),
    ):
        done = command(*words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert f"pip install 'fastrm-monitor[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr
