"""The Python of docs/vllm.md, in a process of its own with the plug-in switched on."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.with_vllm.conftest import ROOT, environment

PREPARED = """
from PIL import Image
from fastrm_monitor.demo import MODEL_FOLDER
model, picture = str(MODEL_FOLDER), Image.new("RGB", (64, 64), "grey")
"""


def test_the_offline_example_runs():
    """It prints an answer, its confidence and the shape of its map."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "vllm.md").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + code],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"0\.\d+ \(8, 8\)", done.stdout)
