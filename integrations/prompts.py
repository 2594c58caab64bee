"""The plain question in a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEGINNINGS = ("user:", "assistant:", "user\n", "assistant\n", "user :", "assistant :")
_ENDINGS = ("user:", "assistant:", "\nuser", "\nassistant", "user :", "assistant :")
"""Words that mark the roles where a chat template spells them out, with and without special tokens around them."""


def question_of(tokenizer: Any, tokens: Sequence[int], image_token_id: int) -> str:
    """The prompt's text without image tokens and the words that mark the roles."""
    words = [token for token in tokens if token != image_token_id]
    text: str = tokenizer.decode(words, skip_special_tokens=True).strip()
    for role in _BEGINNINGS:
        if text.lower().startswith(role):
            text = text[len(role) :].strip()
    for role in _ENDINGS:
        if text.lower().endswith(role):
            text = text[: -len(role)].strip()
    return text
