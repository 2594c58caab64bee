"""How many inputs were tried; `make fuzz` runs this folder with over 10,000, `make test` with the first few."""

from __future__ import annotations

import sys

import pytest

from tests.fuzzing import TALLY, THOROUGH


def test_tally(capsys: pytest.CaptureFixture[str]) -> None:
    """`make fuzz` tries at least 10,000 inputs."""
    total = sum(TALLY.values())
    with capsys.disabled():
        sys.stdout.write("\n" + "".join(f"{n:7,} inputs: {target}\n" for target, n in sorted(TALLY.items())))
        sys.stdout.write(f"{total:7,} inputs in all\n")
    assert not THOROUGH or total >= 10_000
