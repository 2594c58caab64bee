"""The front end: requests seen coming, the engine's messages about them, answers leaving with their assessment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from fastrm_monitor.errors import ModelError
from fastrm_monitor.integrations.vllm.frontend import Desk, Served
from fastrm_monitor.integrations.vllm.internals import argument, http, unmonitored_otherwise, wrap
from fastrm_monitor.integrations.vllm.ledger import ENTRY, parts_of
from fastrm_monitor.integrations.vllm.pictures import PictureShelf
from fastrm_monitor.integrations.vllm.responses import FIELD
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.scoring.patches import layout_for
from fastrm_monitor.types import Assessment


def front_end_is_ready(engine: Any) -> None:
    """An engine front end is made: open its desk.

    Raises:
        FastRMError: a setting, the proxy, the store or the model's layout cannot be used.
    """
    processor = engine.output_processor
    if getattr(processor, FIELD, None) is not None:
        return
    if not engine.vllm_config.model_config.is_multimodal_model:
        raise ModelError("The model takes no pictures, so there is nothing to monitor.")
    desk = _open_desk(engine)
    processor.fastrm = engine.fastrm = desk
    wrap(engine.renderer.mm_processor, "apply", functools.partial(_process_pictures, desk))
    wrap(processor, "add_request", functools.partial(_add_request, desk, processor))
    wrap(processor, "process_outputs", functools.partial(_process_outputs, desk, processor))
    wrap(processor, "abort_requests", functools.partial(_abort_requests, desk, processor))
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.output_processor import RequestState

    CompletionOutput.fastrm = None  # until there is an assessment
    RequestOutput.fastrm = property(lambda output: output.outputs[0].fastrm if output.outputs else None)
    wrap(RequestState, "_new_completion_output", _new_completion_output)
    wrap(RequestOutput, "add", _add_to_output)


def server_is_ready(engine: Any) -> None:
    """The engine front end of a server, perhaps of one that speaks HTTP.

    Raises:
        FastRMError: see `front_end_is_ready`.
    """
    front_end_is_ready(engine)
    wrap(engine, "add_request", _keep_trace_headers)
    http.watch_responses()


def _open_desk(engine: Any) -> Desk:
    model = engine.vllm_config.model_config
    names = model.served_model_name
    if engine.renderer.mm_processor is None:
        raise ModelError("The engine is set to take no pictures, so there is nothing to monitor.")
    layout = layout_for(model.hf_config, engine.renderer.mm_processor.info.get_hf_processor())
    monitor = Monitor.open(provider="vllm")
    shelf = PictureShelf(monitor.settings.picture_memory << 20)
    return Desk(monitor, layout, engine.renderer.tokenizer, names if isinstance(names, str) else names[0], shelf)


# --- requests ---------------------------------------------------------------------------------------------------------

_trace_headers: ContextVar[Mapping[str, str] | None] = ContextVar("fastrm_trace_headers", default=None)


async def _keep_trace_headers(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The server drops the caller's trace headers unless it traces by itself; keep them while a request is added."""
    before = _trace_headers.set(kwargs.get("trace_headers"))
    try:
        return await original(*args, **kwargs)
    finally:
        _trace_headers.reset(before)


def _process_pictures(desk: Desk, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Keep the pictures that the engine processes, by the hashes that it gives them."""
    result = original(*args, **kwargs)
    with desk.monitor.guard("picture"):
        inputs = argument(args, kwargs, 0, "inputs")
        for number, identity in enumerate(result["mm_hashes"].get("image", ())):
            desk.shelf.put(identity, inputs.mm_data_items["image"].get_item_for_hash(number))
    return result


def _add_request(desk: Desk, processor: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)
    with desk.monitor.guard("capture"):
        request = argument(args, kwargs, 0, "request")
        state = processor.request_states.get(request.request_id)
        if state is None or request.sampling_params is None or hasattr(state, FIELD):
            return  # a pooling request, or more of a request that is being streamed in
        served = desk.admit(_served(request, state))
        if _is_beam(request, state):
            desk.drop(served, "beam_search")
        else:
            state.fastrm = (desk, served)


def _served(request: Any, state: Any) -> Served:
    images = [feature for feature in request.mm_features or () if feature.modality == "image"]
    images.sort(key=lambda feature: int(feature.mm_position.offset))
    return Served(
        request_id=state.external_req_id if state.parent_req is None else request.request_id,
        prompt=request.prompt_token_ids,
        pictures=[feature.mm_hash or feature.identifier for feature in images],
        image_tokens=sum(feature.mm_position.get_num_embeds() for feature in images),
        headers=request.trace_headers or _trace_headers.get(),
    )


def _is_beam(request: Any, state: Any) -> bool:
    """Beam search asks for one token at a time with many candidates; none of these is an answer."""
    params = request.sampling_params
    piece = params.max_tokens == 1 and not params.detokenize and bool(params.logprobs)
    # A caller may ask for the same; what the server's beam search and the offline one leave behind tells them apart.
    server = state.queue is not None
    return piece and (
        "-beam-" in str(request.external_req_id) if server else bool(getattr(params, "skip_clone", False))
    )


def _abort_requests(desk: Desk, processor: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Requests that go without a last output (offline) are counted here; the others were by then."""
    before: dict[str, Any] = {}
    with desk.monitor.guard("capture"):
        before = dict(processor.request_states)
    aborted = original(*args, **kwargs)
    with desk.monitor.guard("capture"):
        for request_id in before.keys() - processor.request_states.keys():
            watch = _take_watch(before[request_id])
            if watch is not None:
                desk.drop(watch[1], "aborted")
    return aborted


# --- answers ----------------------------------------------------------------------------------------------------------


def _process_outputs(desk: Desk, processor: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with desk.monitor.guard("drain"):
        for output in argument(args, kwargs, 0, "engine_core_outputs"):
            if output.trace_headers and ENTRY in output.trace_headers:
                watch = getattr(processor.request_states.get(output.request_id), FIELD, None)
                with desk.monitor.guard("drain"):
                    desk.receive(watch[1] if watch is not None else None, parts_of(output.trace_headers[ENTRY]))
    return original(*args, **kwargs)


def _new_completion_output(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    completion = original(state, *args, **kwargs)
    watch = _take_watch(state) if completion.finish_reason is not None else None
    if watch is not None:
        with watch[0].monitor.guard("score"):
            completion.fastrm = _finish(watch[0], watch[1], state.detokenizer, completion)
    return completion


def _finish(desk: Desk, served: Served, detokenizer: Any, completion: Any) -> Assessment:
    tokens = detokenizer.output_token_ids
    return desk.finish(
        served,
        tokens=tokens,
        text=lambda: getattr(detokenizer, "output_text", None) or desk.decode(tokens),
        reason=completion.finish_reason,
        at_end_token=completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str),
    )


def _add_to_output(original: Callable[..., Any], output: Any, *args: Any, **kwargs: Any) -> None:
    """A slow consumer of a stream gets several outputs as one: the assessment of the last must not be lost."""
    original(output, *args, **kwargs)
    with unmonitored_otherwise():
        merged = argument(args, kwargs, 0, "next_output").outputs
        found = {one.index: one.fastrm for one in merged if one.fastrm is not None}
        for completion in output.outputs:
            if completion.index in found:
                completion.fastrm = found[completion.index]


def _take_watch(state: Any) -> tuple[Desk, Served] | None:
    """Who watches a request, and not any more from here on."""
    watch, state.fastrm = getattr(state, FIELD, None), None
    found: tuple[Desk, Served] | None = watch
    return found
