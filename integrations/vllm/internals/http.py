"""The HTTP server: the handlers of chat and text completions put the assessments on their choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrm_monitor.guard import logger
from fastrm_monitor.integrations.vllm.internals import NEEDED_BY_SERVER, missing, version, wrap
from fastrm_monitor.integrations.vllm.responses import FIELD, Overheard, add_to_response, add_to_stream


def watch_responses() -> None:
    """Wrap the handlers; the server makes them after the engine."""
    lacking = missing(NEEDED_BY_SERVER)
    if lacking:
        logger.warning("fastrm-monitor: HTTP responses carry no scores: vLLM %s lacks %s.", version(), lacking)
        return
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    wrap(OpenAIServingChat, "chat_completion_full_generator", _chat)
    wrap(OpenAIServingChat, "chat_completion_stream_generator", _chat_stream)
    wrap(OpenAIServingCompletion, "request_output_to_completion_response", _completion)
    wrap(OpenAIServingCompletion, "completion_stream_generator", _completion_stream)


async def _chat(original: Callable[..., Any], handler: Any, *args: Any, **kwargs: Any) -> Any:
    """`args` are the request, the engine's outputs, ..."""
    desk = _desk(handler)
    if desk is None or len(args) < 2:
        return await original(handler, *args, **kwargs)
    heard = Overheard(args[1], _index)
    response = await original(handler, args[0], heard, *args[2:], **kwargs)
    return add_to_response(response, heard.assessments, desk.monitor.guard)


def _chat_stream(original: Callable[..., Any], handler: Any, *args: Any, **kwargs: Any) -> Any:
    """`args` are the request, the engine's outputs, ..."""
    desk = _desk(handler)
    if desk is None or len(args) < 2:
        return original(handler, *args, **kwargs)
    heard = Overheard(args[1], _index)
    return add_to_stream(original(handler, args[0], heard, *args[2:], **kwargs), heard, desk.monitor.guard)


def _completion(original: Callable[..., Any], handler: Any, *args: Any, **kwargs: Any) -> Any:
    """`args` are the final outputs, one a prompt, ..."""
    response = original(handler, *args, **kwargs)
    desk = _desk(handler)
    if desk is not None:
        with desk.monitor.guard("response"):
            completions = [completion for result in args[0] for completion in result.outputs]
            found = {k: one.fastrm for k, one in enumerate(completions) if getattr(one, FIELD, None) is not None}
            add_to_response(response, found, desk.monitor.guard)
    return response


def _completion_stream(original: Callable[..., Any], handler: Any, *args: Any, **kwargs: Any) -> Any:
    """`args` are the request, its prompts, the engine's outputs, ..."""
    desk = _desk(handler)
    if desk is None or len(args) < 3:
        return original(handler, *args, **kwargs)
    choices = getattr(args[0], "n", None) or 1
    heard = Overheard(args[2], lambda number, completion: int(completion.index + number * choices))
    return add_to_stream(original(handler, *args[:2], heard, *args[3:], **kwargs), heard, desk.monitor.guard)


def _desk(handler: Any) -> Any:
    return getattr(getattr(handler, "engine_client", None), FIELD, None)


def _index(_number: int, completion: Any) -> int:
    return int(completion.index)
