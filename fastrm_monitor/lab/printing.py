"""The report as tables, for people; every number in them stands in `report.json` too."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print accuracy, fidelity, pointing game and confidence, a row for each data set."""
    parts = [report, *report["shifts"].values()]
    table = Table(title="Accuracy of the model, with 95 % interval over pictures")
    for name in ("data", "kind of question", "n", "accuracy"):
        table.add_column(name, no_wrap=True)
    for part in parts:
        rates = part["accuracy"]
        table.add_row(part["data"], "all", str(rates["all"]["n"]), _rate(rates["all"]))
        for kind, own in rates["by_group"].items():
            table.add_row("", kind, str(own["n"]), _rate(own))
        table.add_section()
    console.print(table)

    table = Table(title="Fidelity of the proxy to its teacher (decision at 0.5)")
    for name in ("data", "positive", "all-neg. acc.", "accuracy", "F1", "AUPRC", "IoU", "rank corr."):
        table.add_column(name)
    for part in parts:
        one, half = part["fidelity"], part["fidelity"]["thresholds"]["0.5"]
        numbers = (
            one["base_rate"], one["all_negative_accuracy"], half["accuracy"], half["f1"],
            one["auprc"], one["iou"], one["rank_correlation"],
        )  # fmt: skip
        table.add_row(part["data"], *(_number(value) for value in numbers))
    console.print(table)

    if report["pointing"]["proxy"]["n"]:
        table = Table(title="Pointing game: most relevant patch in a box of an object asked about")
        for name in ("data", "n", "proxy", "teacher", "chance"):
            table.add_column(name)
        for part in parts:
            proxy, teacher = part["pointing"]["proxy"], part["pointing"]["teacher"]
            if not proxy["n"]:
                continue
            table.add_row(
                part["data"],
                str(proxy["n"]),
                _rate(proxy, "hit_rate"),
                _rate(teacher, "hit_rate"),
                _number(proxy["chance"]),
            )
        console.print(table)

    table = Table(title="Mean absolute difference of the maps of two questions on one picture")
    for name in ("data", "pictures", "proxy", "teacher", "identical (proxy)"):
        table.add_column(name)
    for part in parts:
        apart = part["question_sensitivity"]
        cells = [_rate(apart[name], "mean_absolute_difference") for name in ("proxy", "teacher")]
        same = apart["proxy"]["identical"]
        table.add_row(part["data"], str(apart["proxy"]["pairs"]), *cells, "-" if same is None else str(same))
    console.print(table)

    table = Table(title="AUROC: a right answer scores above a wrong one, with 95 % interval over pictures")
    for name in ("data", "score", "wrong/n", "AUROC", "ECE", "Brier"):
        table.add_column(name, no_wrap=True)
    for part in parts:
        for number, (name, own) in enumerate(part["confidence"].items()):
            table.add_row(
                "" if number else part["data"],
                name,
                f"{own['wrong']}/{own['n']}",
                _rate(own, "auroc", "auroc_ci95"),
                _number(own.get("ece")),
                _number(own.get("brier")),
            )
        apart = part["auroc_difference"]
        table.add_row("", "fastrm - token_probability", "", _rate(apart, "difference"))
        table.add_section()
    console.print(table)

    table = Table(title="AUROC within kinds of question, where pooling cannot help")
    for name in ("data", "kind of question", "n", "fastrm", "token_probability"):
        table.add_column(name, no_wrap=True)
    for part in parts:
        ours, plain = (part["confidence"][name]["by_group"] for name in ("fastrm", "token_probability"))
        for number, (kind, own) in enumerate(ours.items()):
            pair = (_number(own["auroc"]), _number(plain[kind]["auroc"]))
            table.add_row("" if number else part["data"], kind, str(own["n"]), *pair)
        table.add_section()
    console.print(table)

    table = Table(title="Flagged at the proxy's threshold, with 95 % interval over pictures")
    for name in ("data", "of wrong answers", "n", "of right answers", "n"):
        table.add_column(name, no_wrap=True)
    for part in parts:
        flags = part["flags"]
        if flags is None:
            table.add_row(part["data"], "uncalibrated")
            continue
        wrong, right = flags["of_wrong"], flags["of_right"]
        table.add_row(part["data"], _rate(wrong), str(wrong["n"]), _rate(right), str(right["n"]))
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rate(part: dict[str, Any], name: str = "rate", interval: str = "ci95") -> str:
    if part[name] is None:
        return "-"
    low, high = part[interval] or (float("nan"), float("nan"))
    return f"{part[name]:.3f} [{low:.3f}, {high:.3f}]"
