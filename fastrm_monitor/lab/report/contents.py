"""`report.json`, schema 2 (docs/evaluate.md): what the data sets said, what changes between them, the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fastrm_monitor
from fastrm_monitor.lab.intervals import interval
from fastrm_monitor.lab.report.verdicts import verdicts
from fastrm_monitor.scoring.checkpoint import ProxyFolder

SCHEMA_VERSION = 2


def assemble(
    model: str,
    folders: Mapping[str, ProxyFolder],
    judged: Sequence[Mapping[str, Any]],
    *,
    perturbation: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report.

    Args:
        model: name of the model.
        folders: the product's proxy, then those beside it, by name.
        judged: what `judge_set` gave for each data set; the first is the one that the others are held against.
        perturbation: of the first data set; None when it was left out, likewise the other sections.
        cost: of the model and its proxies.
        layers: of the first data set.
    """
    first, *others = judged
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "library_version": fastrm_monitor.__version__,
        "model": model,
        "proxy": _described(next(iter(folders.values()))),
        "proxies_compared": {name: _described(folder) for name, folder in folders.items()},
        **first["part"],
        "generalisation": {one["part"]["data"]: generalisation(first, one) for one in others},
        "perturbation": perturbation,
        "cost": cost,
        "layers": layers,
        "shifts": {one["part"]["data"]: one["part"] for one in others},
    }
    report["verdicts"] = verdicts(report)
    return report


def generalisation(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What each number of another data set has above that of the first: `difference`, `ci95`, drawn independently."""
    found = {}
    for name, here in other["points"].items():
        there = first["points"][name]
        drawn = [np.array(one["draws"][name], float) for one in (other, first)]
        found[name] = {
            "difference": None if here is None or there is None else here - there,
            "ci95": interval(drawn[0] - drawn[1]) if drawn[0].size == drawn[1].size else None,
        }
    return found


def _described(folder: ProxyFolder) -> dict[str, Any]:
    return {
        "path": str(folder.path),
        "version": folder.version,
        "form": folder.config.form,
        "parameters": sum(value.numel() for value in folder.proxy.parameters()),
    }
