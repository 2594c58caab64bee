"""In the engine core: what the worker found out about a request, kept until the request's answer leaves.

The sheets of the workers come with the engine's own results, step by step; an entry goes to the front end with the
engine's own message that ends the answer. Where the front end itself may end it, at a stop string, what is known goes
out with every token. No message of our own, no waiting.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from fastrm_monitor.guard import Guard
from fastrm_monitor.integrations.vllm.worker import Finding, Sheet

ENTRY = "fastrm"
"""Name under which an entry travels, among strings: the engine's messages have room for trace headers only, which a
front end that knows nothing of monitoring does not look at."""


@dataclass(eq=False)
class _Entry:
    finding: Finding | None = None
    log_probabilities: array[float] = field(default_factory=lambda: array("f"))
    entropies: array[float] = field(default_factory=lambda: array("f"))


class Ledger:
    """Entries of the requests that one engine core serves."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._failed: Counter[str] = Counter()
        self._about = ""
        self._refused = False
        self.guard = Guard(lambda stage: self._failed.update([stage]))

    def note(self, sheet: Sheet, request_ids: list[str]) -> dict[str, tuple[float, float]]:
        """Take a worker's sheet in.

        Args:
            sheet: of one step.
            request_ids: of that step's batch.

        Returns:
            Log probability and entropy of the step's tokens by request; `token` keeps those that are served.
        """
        self._failed.update(sheet.failed)
        self._about = sheet.about or self._about
        self._refused |= sheet.refused
        for request_id, finding in sheet.findings.items():
            self._entries.setdefault(request_id, _Entry()).finding = finding
        return {
            request_ids[row]: (pair[0], pair[1]) for row, pair in zip(sheet.rows, sheet.numbers.tolist(), strict=True)
        }

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tell the front end of any request."""
        return not (self._entries or self._failed or self._about)

    def token(self, request_id: str, numbers: tuple[float, float] | None, count: int) -> None:
        """`count` tokens of a request are served; `numbers` are those of the step, if it was measured."""
        entry = self._entries.get(request_id)
        if entry is None:
            return
        if numbers is not None and count == 1:
            entry.log_probabilities.append(numbers[0])
            entry.entropies.append(numbers[1])

    def take(self, request_id: str, *, finished: bool) -> str | None:
        """What is known of a request and was not taken yet, in JSON (`parts_of` reads it); None when it is nothing."""
        entry = self._entries.pop(request_id, None) if finished else self._entries.get(request_id)
        plain: dict[str, Any] = {}
        if entry is not None:
            plain["log_probabilities"] = _text(entry.log_probabilities.tobytes())
            plain["entropies"] = _text(entry.entropies.tobytes())
            if entry.finding is not None:
                plain |= {**asdict(entry.finding), "relevance": _text(entry.finding.relevance)}
            if not finished:
                entry.finding, entry.log_probabilities, entry.entropies = None, array("f"), array("f")
        if self._failed:
            plain["failed"], self._failed = dict(self._failed), Counter()
        if self._about:
            plain["about"], self._about = self._about, ""
            plain["refused"] = self._refused
        return json.dumps(plain) if plain else None

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests are gone, e.g. aborted."""
        for request_id in request_ids:
            self._entries.pop(request_id, None)


def parts_of(entry: str) -> dict[str, Any]:
    """What `Ledger.take` gave: bytes of float32 under `log_probabilities`, `entropies` and `relevance`."""
    parts: dict[str, Any] = json.loads(entry)
    for name in ("log_probabilities", "entropies", "relevance"):
        if parts.get(name) is not None:
            parts[name] = b64decode(parts[name])
    return parts


def _text(values: bytes | None) -> str | None:
    return None if values is None else b64encode(values).decode()
