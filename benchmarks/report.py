"""What the benchmarks print, and the same as markdown."""

from __future__ import annotations

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
