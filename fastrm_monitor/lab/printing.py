"""The report as tables of at most 100 columns, or fewer, for people; all of it stands in `report.json` too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fastrm_monitor.lab.report.notes import notes

_STYLES = {"holds": "green", "does not hold": "red", "cannot conclude": "yellow", "not measured": "dim"}


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print each section and the verdicts, a row for each data set."""
    parts = [report, *report["shifts"].values()]
    tables: list[Table | None] = [_accuracy(parts), _pope(parts), _fidelity(report, parts), _ranking(report, parts)]
    tables += [_blind(parts)]
    tables += [_generalisation(report), _pointing(parts), _sensitivity(parts), _areas(parts), _masking(parts)]
    tables += [_confidence(part) for part in parts]
    tables += [_thresholds(parts), _flags(parts), _layers(report), _cost(report), _verdicts(report)]
    for table in tables:
        if table is not None and table.row_count:
            console.print(_fitted(table, console))
    for one in notes(report):
        console.print(one, style="red", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    """Numbers are never cut; the first column gives way where the screen is narrow."""
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=place > 0, overflow="fold")
    return table


def _fitted(table: Table, console: Console) -> Table:
    """The table; where the screen is too narrow for it, intervals stand below their numbers, and names stay whole."""
    if Measurement.get(console, console.options.update_width(1000), table).maximum <= console.width:
        return table
    narrow = _table(str(table.title), *(str(column.header) for column in table.columns))
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        name, *numbers = (str(cell) for cell in cells)
        narrow.add_row(name, *(cell.replace(" [", "\n[") for cell in numbers), end_section=row.end_section)
    return narrow


def _accuracy(parts: Sequence[dict[str, Any]]) -> Table:
    table = _table("Accuracy of the model, with 95 % interval over pictures", "data", "kind of question", "n", "right")
    for part in parts:
        rates = part["accuracy"]
        table.add_row(escape(part["data"]), "all", str(rates["all"]["n"]), _rate(rates["all"]))
        for kind, own in rates["by_group"].items():
            table.add_row("", escape(kind), str(own["n"]), _rate(own))
        table.add_section()
    return table


def _pope(parts: Sequence[dict[str, Any]]) -> Table:
    table = _table("POPE: yes is the positive class", "data, split", "n", "accuracy", "F1", "answers yes")
    for part in parts:
        for split, own in (part["pope"] or {}).items():
            cells = (_rate(own["accuracy"]), _rate(own["f1"], "value"), _rate(own["yes_rate"]))
            table.add_row(escape(f"{part['data']}, {split}"), str(own["n"]), *cells)
    return table


def _fidelity(report: dict[str, Any], parts: Sequence[dict[str, Any]]) -> Table:
    names = ("data, proxy", "relevant", "all-neg.", "accuracy", "F1", "IoU", "rank")
    table = _table("Fidelity of the proxy to its teacher (decision at 0.5), beside its base rate", *names)
    for name, one in _fidelities(report, parts):
        half = one["thresholds"]["0.5"]
        numbers = (one["base_rate"], one["all_negative_accuracy"], half["accuracy"], half["f1"], one["iou"])
        table.add_row(name, *(_number(value) for value in (*numbers, one["rank_correlation"])))
    return table


def _ranking(report: dict[str, Any], parts: Sequence[dict[str, Any]]) -> Table:
    """Pooled, a map gains that only knows in which questions many patches are relevant; within them it has chance."""
    title = "Relevant patches first: AUPRC over all patches, which also ranks questions, and within questions"
    table = _table(title, "data, proxy", "AUPRC", "AUPRC within\nquestions", "random\norder", "above it")
    for name, one in _fidelities(report, parts):
        own, chance, bounds = one["auprc_within"], one["chance_within"], one["ci95"]
        table.add_row(
            name,
            _valued(one["auprc"], bounds["auprc"]),
            _valued(own, bounds["auprc_within"]),
            _number(chance),
            _valued(None if own is None else own - chance, bounds["auprc_within_gain"], "+"),
        )
    return table


def _blind(parts: Sequence[dict[str, Any]]) -> Table:
    title = "AUPRC within questions of maps that do not know the question, and what the proxy has above them"
    table = _table(title, "data, map", "n", "AUPRC within\nquestions", "proxy above it")
    for part in parts:
        for name, own in part["question_blind"].items():
            if own["n"]:
                number = _number(own["auprc_within"])
                row = f"{part['data']}, {name.replace('_', ' ')}"
                table.add_row(escape(row), str(own["n"]), number, _rate(own, "difference", sign="+"))
    return table


def _fidelities(report: dict[str, Any], parts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each proxy's fidelity on each data set, with what its row is called."""
    first, *others = report["proxies_compared"]
    for part in parts:
        rows = {first: part["fidelity"], **{name: own["fidelity"] for name, own in part["proxies"].items()}}
        for name, one in rows.items():
            yield escape(f"{part['data']}, {name}" if others else part["data"]), one


def _generalisation(report: dict[str, Any]) -> Table:
    title = f"Other data against {report['data']}, paired on the pictures that both have"
    table = _table(escape(title), "data, shared pictures", "", "value", "change")
    figures = {"auprc": "AUPRC", "auprc_within": "AUPRC within questions", "auroc": "AUROC of the confidence"}
    for name, own in report["generalisation"].items():
        for place, (key, figure) in enumerate(figures.items()):
            said = (_number(own[key]["value"]), _rate(own[key], "difference", sign="+"))
            table.add_row("" if place else escape(f"{name}, {own['pictures_shared']}"), figure, *said)
    return table


def _pointing(parts: Sequence[dict[str, Any]]) -> Table:
    title = "Pointing game: most relevant patch in a box of an object asked about"
    table = _table(title, "data", "n", "proxy", "teacher", "above it", "chance")
    for part in parts:
        proxy, teacher = part["pointing"]["proxy"], part["pointing"]["teacher"]
        if proxy["n"]:
            apart = _rate(part["pointing"]["difference"], "difference", sign="+")
            rates = (_rate(proxy, "hit_rate"), _rate(teacher, "hit_rate"), apart, _number(proxy["chance"]))
            table.add_row(escape(part["data"]), str(proxy["n"]), *rates)
    return table


def _sensitivity(parts: Sequence[dict[str, Any]]) -> Table:
    title = "Mean absolute difference of the maps of two questions on one picture"
    table = _table(title, "data", "pictures", "proxy", "teacher", "identical")
    for part in parts:
        apart = part["question_sensitivity"]
        cells = [_rate(apart[name], "mean_absolute_difference") for name in ("proxy", "teacher")]
        same = apart["proxy"]["identical"]
        table.add_row(escape(part["data"]), str(apart["proxy"]["pairs"]), *cells, "-" if same is None else str(same))
    return table


def _areas(parts: Sequence[dict[str, Any]]) -> Table:
    table = _table("Area under the accuracy as patches are masked", "data", "n", "order", "area")
    for part in parts:
        found = part["perturbation"]
        if found is None:
            continue
        if "too_few" in found:
            table.add_row(escape(f"{part['data']}: {found['too_few']}"))
            continue
        for place, (order, area) in enumerate(found["area"].items()):
            first = ("", "") if place else (escape(part["data"]), str(found["questions"]))
            table.add_row(*first, order, _rate(area, "mean"))
    return table


def _masking(parts: Sequence[dict[str, Any]]) -> Table:
    title = "Difference of these areas; below 0 the first order finds what the answers rest on"
    table = _table(title, "data", "orders", "difference", "p")
    for part in parts:
        for place, (name, own) in enumerate((part["perturbation"] or {}).get("difference", {}).items()):
            said = (name, _rate(own, "difference", sign="+"), _number(own["p"]))
            table.add_row("" if place else escape(part["data"]), *said)
    return table


def _layers(report: dict[str, Any]) -> Table | None:
    found = report["layers"]
    if found is None or "choices" not in found:
        return None
    title = f"Layers: proxies of {found['training_questions']} questions, judged on {found['questions']}; random order"
    table = _table(
        f"{title} {_number(found['chance_within'])}", "states", "AUPRC within\nquestions", "above final", "F1"
    )
    for name, own in found["choices"].items():
        apart = own.get("difference")
        above = _rate(apart["auprc_within"], "difference", sign="+") if apart else ""
        table.add_row(name, _rate(own["auprc_within"], "value"), above, _rate(own["f1"], "value"))
    return table


def _cost(report: dict[str, Any]) -> Table | None:
    found = report["cost"]
    if found is None:
        return None
    weights = found["memory"]["weights"] / 2**20
    title = (
        f"One map on {found['device']}, {found['prompt_tokens']} tokens: time, less than either teacher takes, and "
        f"memory beside {weights:.1f} MiB of weights"
    )
    table = _table(escape(title), "variant", "ms", "less than published", "less than by row", "MiB")
    for name, own in found["seconds"].items():
        less = (found[figure].get(name) for figure in ("less_time_than_published", "less_time_than_row"))
        saved = ("" if one is None else _percent(one) for one in less)
        alive = f"{found['memory']['alive'][name] / 2**20:.2f}"
        table.add_row(escape(name), f"{1000 * own['median']:.3g}", *saved, alive)
    return table


def _confidence(part: dict[str, Any]) -> Table:
    ours = part["confidence"]["fastrm"]
    title = f"Right above wrong on {part['data']}: {ours['wrong']} of {ours['n']} answers wrong"
    if not ours["conclusive"]:
        title += ", cannot conclude"
    table = _table(escape(title), "score", "AUROC", "in kinds", "PRR", "ECE", "fastrm above it")
    for name, own in part["confidence"].items():
        apart = part["auroc_difference"].get(name)
        known = "" if own["n"] == ours["n"] else f" (n {own['n']})"
        table.add_row(
            name + known,
            _rate(own, "auroc", "auroc_ci95"),
            _number(own["within"]["auroc"]),
            _number(own["prr"]),
            _number(own.get("ece")),
            _rate(apart, "difference", sign="+") if apart else "",
        )
    return table


def _thresholds(parts: Sequence[dict[str, Any]]) -> Table:
    title = f"The threshold that flags 10 % on {parts[0]['data']}, carried to every data set"
    table = _table(escape(title), "score, data", "flagged", "wrong among them", "wrong among all")
    for name in parts[0]["threshold"]:
        for part in parts:
            if name in part["threshold"]:
                own = part["threshold"][name]
                rates = (_rate(own["flag_rate"]), _rate(own["precision"]), _number(1 - part["accuracy"]["all"]["rate"]))
                table.add_row(escape(f"{name}, {part['data']}"), *rates)
    return table


def _flags(parts: Sequence[dict[str, Any]]) -> Table:
    title = "Flagged at the proxy's threshold, with 95 % interval over pictures"
    table = _table(title, "data", "of wrong answers", "n", "of right answers", "n")
    for part in parts:
        flags = part["flags"]
        if flags is None:
            table.add_row(escape(part["data"]), "uncalibrated")
            continue
        wrong, right = flags["of_wrong"], flags["of_right"]
        table.add_row(escape(part["data"]), _rate(wrong), str(wrong["n"]), _rate(right), str(right["n"]))
    return table


def _verdicts(report: dict[str, Any]) -> Table:
    table = _table("Verdicts; report.html has the reasons", "claim", "verdict")
    kind = ""
    for one in report["verdicts"]:
        if one["kind"] != kind:
            kind = one["kind"]
            table.add_section()
            table.add_row(f"[dim]{escape(kind)}[/dim]")
        style = _STYLES[one["verdict"]]
        table.add_row(escape(one["claim"]), f"[{style}]{one['verdict']}[/{style}]")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(part: dict[str, Any]) -> str:
    low, high = part["ci95"]
    return escape(f"{part['value']:.2%} [{low:.2%}, {high:.2%}]")


def _rate(part: dict[str, Any], name: str = "rate", interval: str = "ci95", sign: str = "") -> str:
    return _valued(part[name], part[interval], sign)


def _valued(value: float | None, bounds: list[float] | None, sign: str = "") -> str:
    if value is None:
        return "-"
    if bounds is None:
        return f"{value:{sign}.3f} (too few)"
    return escape(f"{value:{sign}.3f} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]")
