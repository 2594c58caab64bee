"""The benchmarks are run by hand; that they can be read at all is tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ = """
import importlib, runpy, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
for path in sorted(Path("benchmarks").iterdir()):
    if path.suffix == ".py":
        names = runpy.run_path(str(path), run_name="read")
    elif (path / "__main__.py").is_file():
        names = vars(importlib.import_module(f"benchmarks.{path.name}.__main__"))
    else:
        continue
    print(path.stem, "main" in names)
"""


def test_every_benchmark_can_be_read() -> None:
    """Each script and package imports what there is, and those with a command line have a `main`."""
    done = subprocess.run([sys.executable, "-c", READ], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    runs = {
        "big_store", "cost", "decode", "evidence", "faults", "forms", "loop", "overhead", "reviewer", "serving",
        "sizes",
    }  # fmt: skip
    assert {name for name, has_main in found.items() if has_main == "True"} == {*runs, "store"}
