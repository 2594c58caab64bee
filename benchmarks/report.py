"""What the benchmarks print, and the same as markdown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


class Report:
    """Prints as it goes and keeps the same as markdown.

    Args:
        width: of the tables where the output is no terminal.
        heading: of the markdown.
    """

    def __init__(self, width: int, heading: str = "") -> None:
        console = Console()
        self.console = console if console.is_terminal else Console(width=width)
        self.lines: list[str] = [heading, ""] if heading else []
        self._began = time.perf_counter()

    def line(self, text: str) -> None:
        """A paragraph."""
        self.console.print(text, highlight=False)
        self.lines += [text, ""]

    def table(self, title: str, heads: tuple[str, ...], rows: list[list[str]]) -> None:
        """A table under a title."""
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.lines += [f"## {title}", "", "| " + " | ".join(heads) + " |"]
        self.lines.append("|" + "|".join(" ---: " if number else " --- " for number in range(len(heads))) + "|")
        self.lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]

    def end(self, output: Path | None) -> None:
        """Say how long it took since this was made, and write all of it to a file where one is given."""
        self.line(f"The whole run took {(time.perf_counter() - self._began) / 60:.1f} minutes.")
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def with_interval(value: float | None, bounds: Sequence[float] | None, *, sign: str = "", without: str = "") -> str:
    """A number with its interval behind it; `without` stands there when it has none."""
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + (f" [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]" if bounds else without)


def rounded(value: float | None) -> str:
    """A number without an interval; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
