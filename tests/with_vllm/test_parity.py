"""Maps and confidences are those of the transformers integration, however vLLM gets to them."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(("runner", "mode"), [("V1", "eager"), ("V1", "compiled"), ("V2", "eager")])
def test_every_cell_agrees_with_transformers(script, runner, mode, capsys):
    """Maps to 1e-4, confidences to 1e-3, tokens exactly: whole prompts and chunks, prefix misses and hits, 1 to 32."""
    printed = script("cells.py", runner, mode)
    cells = [json.loads(line[5:]) for line in printed.splitlines() if line.startswith("CELL ")]
    lines = ["\nrunner  mode      prefill          prefix  at once  scored  largest piece  map diff  confidence diff"]
    for cell in cells:
        how = f"{cell['runner']:7} {cell['mode']:9} {cell['prefill']:16} {cell['prefix']:7} {cell['at_once']:7}"
        what = f"{cell['scored']:4}/{cell['requests']} {cell['largest_piece']:10}"
        lines.append(f"{how} {what} {cell['map']:12.1e} {cell['confidence']:12.1e}")
    with capsys.disabled():
        print("\n".join(lines))
    assert len(cells) == 12
    assert {(cell["prefill"], cell["prefix"], cell["at_once"]) for cell in cells} == {
        (prefill, prefix, at_once)
        for prefill in ("whole", "48-token chunks")
        for prefix in ("miss", "hit")
        for at_once in (1, 8, 32)
    }
    for cell in cells:
        assert cell["requests"] == 32
        assert cell["scored"] == 29  # three have no picture
        assert cell["same_tokens"] == 32
        assert cell["map"] <= 1e-4
        assert cell["confidence"] <= 1e-3
        assert cell["hits"] == (29 if cell["prefix"] == "hit" else 0)
        if cell["prefix"] == "miss":  # on a hit, what is left of the prompt is shorter than a chunk
            assert cell["largest_piece"] == (48 if "48" in cell["prefill"] else 141)
