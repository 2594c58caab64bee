"""What must be known before any figure of the report is read, in a sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes(report: Mapping[str, Any]) -> list[str]:
    """The sentences: questions that were left out, and data that a proxy was made of."""
    said = []
    for part in (report, *report["shifts"].values()):
        if part["left_out"] and part["left_out"]["questions"]:
            said.append(left_out(part["data"], part["left_out"]))
        said += [in_training(part["data"], proxy, own) for proxy, own in (part["in_training"] or {}).items()]
    return said


def left_out(data: str, found: Mapping[str, Any]) -> str:
    """That no figure is on all questions of a data set."""
    reason = f"; first: {found['first']}" if found["first"] else ""
    return f"{data}: {found['questions']} of {found['of']} questions were left out{reason}".rstrip(".") + "."


def in_training(data: str, proxy: str, found: Mapping[str, Any]) -> str:
    """That a proxy was made of pictures on which it is judged."""
    return (
        f"{data}: {found['pictures']} of {found['of']} pictures were used to train the proxy {proxy}: these figures "
        "say nothing about new pictures."
    )
