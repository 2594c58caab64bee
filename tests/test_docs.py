"""The documentation does what it says: its code runs, its links lead somewhere, its tables are complete.

Blocks marked `python` and `bash` are run; `sh` marks what needs another machine's model or data.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastrm_monitor.config import Settings
from fastrm_monitor.telemetry import semconv

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PREPARED = """
from PIL import Image
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.lab.ask import load_lvlm
model, processor = load_lvlm("embedded", "cpu")
picture = Image.new("RGB", (64, 64), "grey")
inputs = processor(images=[picture], text="USER: <image>\\nis there a red circle? ASSISTANT:", return_tensors="pt")
"""
"""What a reader of the README has: a model, its processor, a picture, a prompt."""


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


WITH_VLLM = ROOT / "docs" / "vllm.md"
"""Its Python is run by tests/with_vllm/test_docs.py, where vLLM is installed."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and page != WITH_VLLM], ids=lambda page: page.name
)
def test_python_blocks_run(page, tmp_path):
    """The Python of a page runs from top to bottom, in a fresh process and an empty folder."""
    code = "\n".join([PREPARED, *blocks(page, "python")]).replace('"proxy/"', "PROXY_FOLDER")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.name)
def test_bash_blocks_run(page, tmp_path):
    """The commands of a page run one after the other, in an empty folder with this environment's commands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}
    script = "\n".join(blocks(page, "bash"))
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link and picture of a page exists."""
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_setting_is_documented():
    """docs/settings.md has each setting with its variable, default and description, word for word."""
    text = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else f"`{field.default}`"
        assert f"| `FASTRM_{name.upper()}` | `{name}` | {default} | {field.description} |" in text


def test_every_telemetry_name_is_documented():
    """docs/telemetry.md has each attribute and metric name that the code can use."""
    text = (ROOT / "docs" / "telemetry.md").read_text()
    names = [value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 25
    for name in set(names) - {semconv.SCOPE}:
        assert name in text, name


def test_readme_shows_the_two_commands():
    """The README has `make demo` and `make test`, and the line that instruments a model."""
    text = (ROOT / "README.md").read_text()
    for said in ("make demo", "make test", "fastrm_monitor.instrument(", "docs/overview.png"):
        assert said in text
