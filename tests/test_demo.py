"""`make demo` as a newcomer types it: a fresh checkout, no virtual environment, two runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from fastrm_monitor.records.store import Store

ROOT = Path(__file__).parent.parent


def test_make_demo_from_a_fresh_checkout(tmp_path):
    """`make demo OPEN=0` installs, serves, says what it found and ends by itself; the second run takes seconds."""
    checkout = tmp_path / "checkout"
    skipped = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "fastrm-demo")
    shutil.copytree(ROOT, checkout, ignore=skipped)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FASTRM_", "OTEL_"))}

    def demo():
        began = time.monotonic()
        done = subprocess.run(
            ["make", "demo", "OPEN=0"], cwd=checkout, env={**environment, "COLUMNS": "200"},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, time.monotonic() - began

    first, _ = demo()
    found = re.search(
        r"(\d+) answers served, (\d+) scored, (\d+) flagged, (\d+) more in the random sample; (\d+) cases", first
    )
    assert found, first
    served, scored, flagged, sampled, stored = map(int, found.groups())
    assert served == scored == 200
    assert stored == flagged + sampled
    assert 0 < flagged < 100
    overlays = checkout / "fastrm-demo" / "overlays"
    assert len(list(overlays.glob("*.png"))) == flagged
    with Store(f"sqlite:///{checkout / 'fastrm-demo' / 'fastrm.db'}") as store:
        assert store.totals()["stored", ""] == stored
    for said in ("store: sqlite:///", "overlays: ", "fastrm-monitor dashboard --store"):
        assert said in first
    second, seconds = demo()
    assert "200 answers served" in second
    assert seconds < 60
