"""The user's own hook, which takes out of question and answer what must not be kept; on the background thread.

It runs before telemetry, spool and store see the texts. Where it fails, the texts are given up, not the rule: they are
replaced, and the failure is counted. Knows neither pictures nor tables.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

from fastrm_monitor import guard
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.types import Answer

FAILED = "[redaction failed]"
"""Stands where a text would be."""


@dataclass(frozen=True)
class Texts:
    """What a hook takes and gives back, changed with `dataclasses.replace`.

    Attributes:
        question: the prompt's text.
        answer: the answer's text.
        user_key: the caller's key of the user; None when unknown.
    """

    question: str
    answer: str
    user_key: str | None = None


Redact = Callable[[Texts], Texts]


class RedactionError(Exception):
    """A hook did not give back texts. Says nothing of what it was given, which may be what it should have removed."""


class Redactor:
    """Calls a hook, one thread at a time: a second one, at the end of the process, does not wait for a hook that hangs.

    Args:
        hook: the user's; None changes nothing.
        failed: told of every failure.
    """

    def __init__(self, hook: Redact | None, failed: Callable[[], None]) -> None:
        self._hook, self._failed = hook, failed
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """A thread that was in the hook is not in the child."""
        self._busy = threading.Lock()

    def __call__(self, answer: Answer, *, needed: bool = True) -> Answer:
        """The answer as it may be emitted and stored; the given one is not changed.

        Args:
            answer: as it was served.
            needed: whether anybody will look at its texts; else they are left out, which saves the hook's time.
        """
        if self._hook is None:
            return answer
        if not needed:
            return replace(answer, question="", text="", user_key=None)
        try:
            texts = self._redacted(Texts(answer.question, answer.text, answer.user_key))
        except Exception as error:
            if guard.STRICT:
                raise
            self._failed()
            untold = RedactionError(str(error))  # without a traceback, whose frames hold the texts
            guard.log_once("fastrm-monitor: texts are not kept because redacting them failed: %s", "redaction", untold)
            texts = Texts(FAILED, FAILED)
        return replace(answer, question=texts.question, text=texts.answer, user_key=texts.user_key)

    def _redacted(self, texts: Texts) -> Texts:
        if not self._busy.acquire(blocking=False):
            raise RedactionError("the hook has not come back yet")
        try:
            found = self._hook(texts) if self._hook is not None else texts
        except BaseException as error:  # its message may quote the texts
            raise RedactionError(f"the hook raised {type(error).__name__}") from None
        finally:
            self._busy.release()
        if not isinstance(found, Texts):
            raise RedactionError(f"the hook gave {type(found).__name__}, not Texts")
        if not (isinstance(found.question, str) and isinstance(found.answer, str)):
            raise RedactionError("the hook gave a question or an answer that is no text")
        if not (found.user_key is None or isinstance(found.user_key, str)):
            raise RedactionError("the hook gave a user key that is no text")
        return found


def load_hook(path: str | None) -> Redact | None:
    """The hook that `package.module:function` names; None for None.

    Raises:
        FastRMError: it cannot be imported, or cannot be called.
    """
    if path is None:
        return None
    module, _, name = path.partition(":")
    if not module or not name:
        raise FastRMError(f"FASTRM_REDACT is {path!r}: write it as package.module:function.")
    try:
        found: object = import_module(module)
    except Exception as error:
        raise FastRMError(
            f"FASTRM_REDACT names {module!r}, which cannot be imported ({type(error).__name__}: {error}): install it, "
            "or put its folder on PYTHONPATH."
        ) from None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise FastRMError(f"FASTRM_REDACT names {name!r}, and {module} has no such function: check the spelling.")
    hook: Redact = found
    return hook
