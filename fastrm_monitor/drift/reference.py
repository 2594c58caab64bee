"""What recent answers are compared with: values of each feature, taken from answers that were judged to be normal.

Either the first answers that a server scored, or a file in the proxy folder, which outlives restarts and is the same
for every server. Knows neither monitor nor store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrm_monitor.errors import ProxyError
from fastrm_monitor.scoring.recalibration import kept_as, score_of

FILE = "reference.json"
"""Name of the file in a proxy folder."""

SIZE = 1000
"""Answers in a reference; more would make the test see shifts that are too small to matter."""


def comparable(features: Mapping[str, float], confidence: float, calibrated: bool) -> dict[str, float]:
    """The numbers of an answer that are held against a reference: what it had before a published recalibration.

    Else every policy that is published would look like drift.
    """
    score, source = score_of(features, confidence, calibrated)
    return {**{name: value for name, value in features.items() if name != kept_as(source)}, "confidence": score}


@dataclass(frozen=True, eq=False)
class Reference:
    """Sorted values, float64 (n,), of each feature, and the version of the proxy that they come from."""

    values: Mapping[str, np.ndarray]
    proxy_version: str

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, float]], proxy_version: str) -> Reference:
        """The reference of answers, each given by its features; an answer may lack some of them."""
        columns: dict[str, list[float]] = {}
        for row in rows:
            for name, value in row.items():
                if math.isfinite(value):
                    columns.setdefault(name, []).append(float(value))
        return cls({name: np.sort(np.array(column)) for name, column in columns.items()}, proxy_version)

    def save(self, folder: str | Path) -> Path:
        """Write `reference.json` into a proxy folder and return its path."""
        path = Path(folder) / FILE
        values = {name: [float(f"{value:.6g}") for value in column] for name, column in sorted(self.values.items())}
        path.write_text(json.dumps({"proxy_version": self.proxy_version, "values": values}) + "\n", encoding="utf-8")
        return path


def load_reference(folder: str | Path, proxy_version: str) -> Reference | None:
    """The reference of a proxy folder; None when it has none.

    Raises:
        ProxyError: the file cannot be understood, or is of another proxy.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        columns = {str(name): np.sort(np.array(column, dtype=np.float64)) for name, column in raw["values"].items()}
        version = str(raw["proxy_version"])
        if not all(column.ndim == 1 and np.isfinite(column).all() for column in columns.values()):
            raise ValueError("its values are not lists of finite numbers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProxyError(f"{path} cannot be read ({error}): make it again, or delete it to do without.") from None
    if version != proxy_version:
        raise ProxyError(
            f"{path} is the reference of proxy {version} and this is proxy {proxy_version}: make it again, or delete "
            "it to do without."
        )
    return Reference(columns, version)
