"""The object `fastrm` in the HTTP responses: on each choice, in a stream on the chunk that ends the choice.

"choices": [{"index": 0, "message": ..., "fastrm": {"confidence": 0.31, "calibrated": true, "entropy": 0.42,
             "flagged": true, "reason": "low_confidence", "case_id": "..."}}]
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastrm_monitor.guard import Guard
from fastrm_monitor.types import Assessment

FIELD = "fastrm"


def as_object(assessment: Assessment) -> dict[str, Any]:
    """What a client is told."""
    return {
        "confidence": assessment.confidence,
        "calibrated": assessment.calibrated,
        "entropy": assessment.entropy,
        "flagged": assessment.flagged,
        "reason": assessment.reason,
        "case_id": assessment.case_id,
    }


class Overheard:
    """Stands between the engine's outputs and the server's code: passes them on and remembers the assessments.

    Args:
        outputs: the engine's request outputs, whose completions carry an assessment when they are complete.
        place: the index of the choice that a completion becomes.
    """

    def __init__(self, outputs: AsyncIterator[Any], place: Callable[[Any, Any], int]) -> None:
        self._outputs, self._place = outputs, place
        self.assessments: dict[int, Assessment] = {}

    def __aiter__(self) -> Overheard:
        return self

    async def __anext__(self) -> Any:
        output = await self._outputs.__anext__()
        self.hear(output)
        return output

    def hear(self, output: Any) -> None:
        """Remember the assessments of an output's completions."""
        # A completion prompt list comes as (number of the prompt, output).
        number, result = output if isinstance(output, tuple) else (0, output)
        for completion in getattr(result, "outputs", None) or ():
            assessment = getattr(completion, FIELD, None)
            if assessment is not None:
                self.assessments[self._place(number, completion)] = assessment

    async def aclose(self) -> None:
        """Close the engine's generator, as a server does when its client is gone."""
        close = getattr(self._outputs, "aclose", None)
        if close is not None:
            await close()


def add_to_response(response: Any, assessments: Mapping[int, Assessment], guard: Guard) -> Any:
    """Put the assessments on the choices of a complete response (a model that allows further fields)."""
    with guard("response"):
        for choice in getattr(response, "choices", ()):
            if choice.index in assessments:
                setattr(choice, FIELD, as_object(assessments[choice.index]))
    return response


async def add_to_stream(chunks: AsyncIterator[str], heard: Overheard, guard: Guard) -> AsyncIterator[str]:
    """Put the assessments on the chunks that end a choice; every other chunk passes untouched."""
    try:
        async for chunk in chunks:
            changed = chunk
            if heard.assessments and '"finish_reason":"' in chunk:
                with guard("response"):
                    changed = _with_assessments(chunk, heard.assessments)
            yield changed
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _with_assessments(chunk: str, assessments: dict[int, Assessment]) -> str:
    head, body = chunk.split(":", 1)
    if head != "data":
        return chunk
    content = json.loads(body)
    ending = [choice for choice in content.get("choices", ()) if choice.get("finish_reason") is not None]
    ending = [choice for choice in ending if choice.get("index") in assessments]
    if not ending:
        return chunk
    for choice in ending:
        choice[FIELD] = as_object(assessments.pop(choice["index"]))
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
