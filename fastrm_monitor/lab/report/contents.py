"""`report.json`, schema 5 (docs/evaluate.md): what the data sets said, what changes between them, the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fastrm_monitor
from fastrm_monitor.lab.intervals import interval
from fastrm_monitor.lab.report.verdicts import verdicts
from fastrm_monitor.scoring.checkpoint import ProxyFolder

SCHEMA_VERSION = 5


def assemble(
    model: str,
    folders: Mapping[str, ProxyFolder],
    judged: Sequence[Mapping[str, Any]],
    *,
    drawn_from: Mapping[str, Any] | None = None,
    pope: Mapping[str, Any] | None = None,
    perturbation: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
    left_out: Mapping[str, Any] | None = None,
    in_training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report.

    Args:
        model: name of the model.
        folders: the product's proxy, then those beside it, by name.
        judged: what `judge_set` gave for each data set; the first is the one that the others are held against.
        drawn_from: what each data set calls itself, seed and numbers of scenes included, by its name in the report.
        pope: POPE's measures, by name of the data sets that have that form.
        perturbation: by name of the data set; none of those that it was left out of.
        cost: of the model and its proxies; None when it was left out, likewise `layers`.
        layers: of the first data set.
        left_out: questions without a label, by name of the data set.
        in_training: by name of the data set and of the proxy that was made of its pictures.
    """
    first, *others = judged
    parts = [one["part"] for one in judged]
    more = {"drawn_from": drawn_from or {}, "pope": pope or {}, "perturbation": perturbation or {}}
    more |= {"left_out": left_out or {}, "in_training": in_training or {}}
    whole = {part["data"]: {**part, **{key: own.get(part["data"]) for key, own in more.items()}} for part in parts}
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "library_version": fastrm_monitor.__version__,
        "model": model,
        "proxy": _described(next(iter(folders.values()))),
        "proxies_compared": {name: _described(folder) for name, folder in folders.items()},
        **whole.pop(first["part"]["data"]),
        "generalisation": {one["part"]["data"]: generalisation(first, one) for one in others},
        "cost": cost,
        "layers": layers,
        "shifts": whole,
    }
    report["verdicts"] = verdicts(report)
    return report


def generalisation(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Each number of another data set, `value`, and what it has above that of the first, `difference` with `ci95`.

    The draws are paired on the pictures of which both have one, `pictures_shared` in number, and independent on others.
    """
    found: dict[str, Any] = {"pictures_shared": len({*first["origins"]} & {*other["origins"]})}
    for name, here in other["points"].items():
        there = first["points"][name]
        drawn = [np.array(one["draws"][name], float) for one in (other, first)]
        found[name] = {
            "value": here,
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
