"""Compares the traffic with a reference, window by window, in bounded memory.

The monitor's background thread adds every scored answer; when a window is complete, one `Drift` a feature comes back.
Nothing is said of fewer than `minimum` answers. Knows neither telemetry nor store.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fastrm_monitor.drift.reference import SIZE, Reference
from fastrm_monitor.drift.statistics import kolmogorov_smirnov, population_stability, wasserstein
from fastrm_monitor.records.forks import renew_in_child

STATISTICS = ("ks", "ks_p", "psi", "wasserstein")
"""What a window is summed up by."""

_MOST_FEATURES = 32
"""Features that are watched; whatever a proxy calls its numbers, a metric may not get thousands of series."""


@dataclass(frozen=True)
class Drift:
    """How far one feature of a window is from its reference.

    Attributes:
        feature: "confidence", "map_entropy", ...
        ks: Kolmogorov-Smirnov distance, 0..1.
        ks_p: its p value times the number of features that were compared, at most 1 (Bonferroni): without drift, the
            smallest of a window is below 0.001 in at most one window of a thousand.
        psi: population stability index over the reference's deciles.
        wasserstein: mean distance that the values moved, in the feature's unit.
        n_reference: answers in the reference that have the feature.
        n_window: answers in the window that have it and were compared.
    """

    feature: str
    ks: float
    ks_p: float
    psi: float
    wasserstein: float
    n_reference: int
    n_window: int

    def statistics(self) -> dict[str, float]:
        """The values by the names in `STATISTICS`."""
        return {name: getattr(self, name) for name in STATISTICS}


class DriftWatch:
    """Watches one server's answers; for one thread.

    A window is complete when `period` seconds are over and it has `minimum` answers. Of a busy period, a uniform sample
    of `size` answers is kept. A child process begins a window of its own against the same reference.

    Args:
        reference: what to compare with; None takes the first `size` scored answers.
        proxy_version: of the reference that is made when there is none.
        size: answers in the reference that is made, and at most in a window.
        minimum: answers that a reference and a window need before anything is said of a feature.
        period: least seconds of a window.
        clock: seconds that never go back.
        seed: of the sample; None draws from the system.
    """

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        proxy_version: str = "",
        size: int = SIZE,
        minimum: int = 200,
        period: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.reference = reference
        self._proxy_version = proxy_version
        self._size, self._minimum, self._period = size, min(minimum, size), period
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Begin an empty window."""
        self._rows: list[dict[str, float]] = []
        self._seen = 0  # answers of the window, those that were not kept included
        self._began: float | None = None

    def add(self, features: Mapping[str, float]) -> list[Drift]:
        """Take one scored answer in; what was found, by feature, when that completes a window, else nothing.

        Args:
            features: finite numbers by name, the confidence among them; others are left out.
        """
        row = {name: float(value) for name, value in features.items() if math.isfinite(value)}
        if self._began is None:
            self._began = self._clock()
        self._seen += 1
        if len(self._rows) < self._size:
            self._rows.append(row)
        else:  # a uniform sample of all answers of the window (Vitter's algorithm R)
            place = self._random.randrange(self._seen)
            if place < self._size:
                self._rows[place] = row
        if self.reference is None:
            if len(self._rows) == self._size:
                self.reference = Reference.of(self._rows, self._proxy_version)
                self.after_fork()
            return []
        if self._seen < self._minimum or self._clock() - self._began < self._period:
            return []
        found = self._compare(self.reference)
        self.after_fork()
        return found

    def _compare(self, reference: Reference) -> list[Drift]:
        columns = {
            name: (known, np.array([row[name] for row in self._rows if name in row]))
            for name, known in sorted(reference.values.items())[:_MOST_FEATURES]
        }
        compared = {
            name: pair for name, pair in columns.items() if min(len(values) for values in pair) >= self._minimum
        }
        found = []
        for name, (known, recent) in compared.items():
            d, p = kolmogorov_smirnov(known, recent)
            found.append(
                Drift(
                    feature=name,
                    ks=d,
                    ks_p=min(p * len(compared), 1.0),
                    psi=population_stability(known, recent),
                    wasserstein=wasserstein(known, recent),
                    n_reference=len(known),
                    n_window=len(recent),
                )
            )
        return found
