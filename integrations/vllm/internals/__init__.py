"""Every touch of vLLM's internals, and nothing else. Checked against vLLM 0.32.0, model runners V1 and V2.

Four methods get a line before or after them (`install`); from there on the objects in use are wrapped:

    WorkerWrapperBase.initialize_from_config  -> `runner`: the model runner's two methods and its sampler
    Scheduler.update_from_output              -> `core`: the scheduler's outputs
    AsyncLLM.__init__, LLMEngine.__init__     -> `front`: output processor and picture processor; `http`: the handlers

Whatever is missing in another version is named once in the log, and the server goes on serving unmonitored.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fastrm_monitor.errors import FastRMError, ModelError
from fastrm_monitor.guard import logger

MARK = "_fastrm_wrapped"

NEEDED = {
    "vllm.v1.worker.worker_base": ("WorkerWrapperBase.initialize_from_config",),
    "vllm.v1.core.sched.scheduler": ("Scheduler.update_from_output",),
    "vllm.v1.engine.llm_engine": ("LLMEngine.add_request",),
    "vllm.v1.engine.async_llm": ("AsyncLLM.add_request",),
    "vllm.v1.engine.output_processor": (
        "OutputProcessor.add_request", "OutputProcessor.process_outputs", "OutputProcessor.abort_requests",
        "RequestState._new_completion_output",
    ),
    "vllm.outputs": ("RequestOutput.add", "CompletionOutput.finished"),
}  # fmt: skip
"""What every process of vLLM must have, by module."""

NEEDED_BY_SERVER = {
    "vllm.entrypoints.openai.chat_completion.serving": (
        "OpenAIServingChat.chat_completion_full_generator", "OpenAIServingChat.chat_completion_stream_generator",
    ),
    "vllm.entrypoints.openai.completion.serving": (
        "OpenAIServingCompletion.request_output_to_completion_response",
        "OpenAIServingCompletion.completion_stream_generator",
    ),
}  # fmt: skip
"""What the HTTP server must have for the object in its responses; without it answers are scored all the same."""


def install() -> None:
    """Check that everything is there, then wrap the four methods; safe to call again.

    Raises:
        ModelError: something is missing; the sentence names it.
    """
    refuse_if_missing(missing(NEEDED))
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from fastrm_monitor.integrations.vllm.internals import core, front, runner

    _after(WorkerWrapperBase, "initialize_from_config", runner.worker_is_ready)
    wrap(Scheduler, "update_from_output", core.update_from_output)
    _after(AsyncLLM, "__init__", front.server_is_ready)
    _after(LLMEngine, "__init__", front.front_end_is_ready)


def missing(modules: Mapping[str, Sequence[str]]) -> list[str]:
    """What this vLLM lacks of `modules`, as `module.Class.method`."""
    lacking = []
    for module, names in modules.items():
        try:
            home: Any = import_module(module)
        except Exception as error:  # beside what is not there, libraries that do not fit together
            lacking.append(f"{module} ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
            continue
        lacking += [f"{module}.{name}" for name in names if not has(home, name)]
    return lacking


def has(thing: Any, path: str) -> bool:
    """Whether `thing.a.b` is there, for a path "a.b"."""
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def refuse_if_missing(lacking: Sequence[str]) -> None:
    """Raise when `lacking` is not empty.

    Raises:
        ModelError: it names what is missing.
    """
    if lacking:
        raise ModelError(
            f"vLLM {version()} lacks {', '.join(lacking)}, which monitoring reads; 0.32.0 is known to work: "
            "look for a newer fastrm-monitor."
        )


def version() -> str:
    """The version of vLLM that is loaded."""
    return str(getattr(sys.modules.get("vllm"), "__version__", "of unknown version"))


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Have `around(original, ...)` called in place of a method, once for each method of a class or of an object.

    `around` passes the arguments on as they came, whatever they are, and does its own work under a guard.
    """
    original = getattr(owner, name)
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, MARK, True)
    setattr(owner, name, wrapped)


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    """An argument of a call, however it was passed; None when it was not."""
    return args[place] if len(args) > place else kwargs.get(name)


def _after(owner: type, name: str, then: Callable[[Any], None]) -> None:
    """Call `then(self)` after a method; a failure of it is one line in the log and nothing else."""

    def around(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        with unmonitored_otherwise():
            then(self)
        return result

    wrap(owner, name, around)


@contextmanager
def unmonitored_otherwise() -> Iterator[None]:
    """What fails inside is said in one line of the log."""
    try:
        yield
    except FastRMError as error:
        logger.warning("fastrm-monitor: vLLM goes on serving, unmonitored. %s", error)
    except Exception as error:
        logger.warning("fastrm-monitor: vLLM goes on serving, unmonitored: %s", error, exc_info=error)
