"""The worker: the model runner's steps, read between the forward pass and sampling."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastrm_monitor.errors import FastRMError, ModelError
from fastrm_monitor.guard import logger
from fastrm_monitor.integrations.vllm.internals import (
    MARK,
    argument,
    has,
    refuse_if_missing,
    unmonitored_otherwise,
    version,
    wrap,
)
from fastrm_monitor.integrations.vllm.slots import SlotKeys
from fastrm_monitor.integrations.vllm.worker import Batch, NewPrompt, Sheet, Step, WorkerMonitor
from fastrm_monitor.scoring.checkpoint import check_model
from fastrm_monitor.scoring.scorer import Scorer

NEEDED_OF_RUNNER = {
    "V1": (
        "execute_model", "sample_tokens", "execute_model_state", "sampler.forward", "device", "get_model",
        "kv_cache_config.num_blocks", "kv_cache_config.kv_cache_groups", "query_start_loc.np", "input_batch.num_reqs",
        "input_batch.req_ids", "input_batch.num_computed_tokens_cpu", "input_batch.block_table",
    ),
    "V2": (
        "execute_model", "sample_tokens", "execute_model_state", "sampler", "device", "get_model",
        "kv_cache_config.num_blocks", "kv_cache_config.kv_cache_groups", "block_tables.block_sizes",
        "block_tables.block_tables", "block_tables.slot_mappings",
    ),
}  # fmt: skip
"""What a model runner must have once its KV cache is laid out."""


def worker_is_ready(wrapper: Any) -> None:
    """The model is loaded and the KV cache is laid out: watch the runner.

    Raises:
        FastRMError: the proxy or the engine's configuration rules monitoring out.
    """
    runner, config = wrapper.worker.model_runner, wrapper.vllm_config
    if getattr(runner, MARK, False) or not _has_final_states():
        return
    if not config.model_config.is_multimodal_model or getattr(runner, "is_pooling_model", False):
        return
    try:
        _watch(runner, config)
    except FastRMError:
        _tell_refusal(runner)
        raise


def _has_final_states() -> bool:
    """Whether this rank computes the final states and is the one whose output the engine reads."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


def _watch(runner: Any, config: Any) -> None:
    parallel = config.parallel_config
    if getattr(parallel, "decode_context_parallel_size", 1) * getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise ModelError("Context parallelism spreads a prompt's KV slots over ranks, which is not supported.")
    v2 = hasattr(runner, "block_tables")
    kind = "V2" if v2 else "V1"
    refuse_if_missing([f"runner {kind}.{path}" for path in NEEDED_OF_RUNNER[kind] if not has(runner, path)])
    scorer = Scorer(os.environ["FASTRM_PROXY"])
    image_token_id = _check_proxy(scorer, runner.get_model(), config.model_config)
    group = _full_attention_group(runner.kv_cache_config)
    block_size = int(runner.block_tables.block_sizes[group] if v2 else runner.input_batch.block_table[group].block_size)
    spec = runner.kv_cache_config.kv_cache_groups[group].kv_cache_spec
    keys = SlotKeys(
        WorkerMonitor.query_row(scorer.to(runner.device)),
        slots=runner.kv_cache_config.num_blocks * spec.block_size,
        block_size=block_size,
        dtype=config.model_config.dtype,
        device=runner.device,
    )
    about = f"vLLM {version()}, runner {kind}, hooks live, keys {keys.bytes / 2**20:.1f} MiB"[:64]
    monitor = WorkerMonitor(scorer, keys, image_token_id, about)
    read = functools.partial(_batch_v2 if v2 else _batch_v1, runner, group)
    _watch_sampler(runner.sampler, monitor)
    wrap(runner, "execute_model", functools.partial(_execute_model, monitor))
    wrap(runner, "sample_tokens", functools.partial(_sample_tokens, runner, monitor, read))
    setattr(runner, MARK, True)
    runner.fastrm = monitor
    logger.info("fastrm-monitor: watching. %s", about)


def _check_proxy(scorer: Scorer, model: Any, model_config: Any) -> int:
    """Refuse a proxy of another model; returns the image token."""
    config = model_config.hf_config
    image_token_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    norm = getattr(getattr(language, "model", language), "norm", None)
    if image_token_id is None or norm is None:
        lacking = "config.image_token_id" if image_token_id is None else "final norm at language_model.model.norm"
        raise ModelError(f"{type(model).__name__} has no {lacking}: this model cannot be monitored.")
    check_model(
        scorer.folder,
        hidden_size=config.get_text_config().hidden_size,
        image_token_id=image_token_id,
        norm=norm,
        same_classes=False,
    )
    return int(image_token_id)


def _full_attention_group(cache: Any) -> int:
    """The KV-cache group that keeps every token of a prompt."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for number, group in enumerate(cache.kv_cache_groups):
        if isinstance(group.kv_cache_spec, FullAttentionSpec):
            return number
    raise ModelError("No layer of this model keeps every token in the KV cache, so patch keys cannot lie beside it.")


def _tell_refusal(runner: Any) -> None:
    """Let the front end know with the first output that nothing will come."""
    told = False

    def sample_tokens(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal told
        output = original(*args, **kwargs)
        if not told and output is not None:
            told = True
            with unmonitored_otherwise():
                _attach(output, lambda: Sheet.refusal(f"vLLM {version()}, unmonitored: proxy refused"))
        return output

    wrap(runner, "sample_tokens", sample_tokens)


# --- a step -----------------------------------------------------------------------------------------------------------


def _execute_model(monitor: WorkerMonitor, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not kwargs.get("dummy_run"):
        with monitor.guard("capture"):
            plan = argument(args, kwargs, 0, "scheduler_output")
            monitor.admit(map(_new_prompt, plan.scheduled_new_reqs), plan.finished_req_ids)
    return original(*args, **kwargs)


def _new_prompt(new: Any) -> NewPrompt:
    pictures = []
    for feature in new.mm_features:
        if feature.modality == "image":
            place = feature.mm_position
            positions = np.arange(place.offset, place.offset + place.length)
            if place.is_embed is not None:  # separators among the patches
                positions = positions[place.is_embed.numpy()]
            if len(positions):
                pictures.append((positions, feature.identifier))
    if not pictures:
        return NewPrompt(new.req_id, None, ())
    tokens = None
    if new.prompt_token_ids is not None and new.prompt_embeds is None:
        tokens = np.asarray(new.prompt_token_ids, dtype=np.int64)
    adapter = new.lora_request.lora_name if new.lora_request is not None else ""
    return NewPrompt(new.req_id, tokens, sorted(pictures, key=lambda one: int(one[0][0])), adapter)


def _sample_tokens(
    runner: Any,
    monitor: WorkerMonitor,
    read: Callable[[], Batch],
    original: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    step = None
    monitor.current = None
    with monitor.guard("capture"):
        state = runner.execute_model_state
        if state is not None:
            step = monitor.read(read())
            monitor.current = None if _verifies_drafts(state) else step
    try:
        output = original(*args, **kwargs)
    finally:
        monitor.current = None
    if step is not None and output is not None:
        with monitor.guard("drain"):
            if step.send(*monitor.news()):
                _attach(output, functools.partial(_collect, step, monitor))
    return output


def _verifies_drafts(state: Any) -> bool:
    """Whether the sampler is asked for the token after the drafts, which may not be the one that is served."""
    drafts = getattr(getattr(state, "input_batch", None), "num_draft_tokens", 0)
    return getattr(state, "spec_decode_metadata", None) is not None or bool(drafts)


def _collect(step: Step, monitor: WorkerMonitor) -> Sheet | None:
    with monitor.guard("drain"):
        return step.collect()
    return None


def _attach(output: Any, sheet: Callable[[], Sheet | None]) -> None:
    """Have a sheet travel with the engine's output; it is made where the engine waits for the tokens anyway."""
    if not hasattr(output, "get_output"):
        output.fastrm = sheet()
        return

    def get_output(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        result.fastrm = sheet()
        return result

    wrap(output, "get_output", get_output)


def _batch_v1(runner: Any, group: int) -> Batch:
    batch, count = runner.input_batch, runner.input_batch.num_reqs
    table = batch.block_table[group]
    return Batch(
        request_ids=batch.req_ids[:count],
        first=batch.num_computed_tokens_cpu[:count],
        starts=runner.query_start_loc.np[: count + 1],
        table_rows=np.arange(count),
        states=runner.execute_model_state.hidden_states,
        slot_mapping=table.slot_mapping.gpu,
        block_table=table.block_table.gpu,
    )


def _batch_v2(runner: Any, group: int) -> Batch:
    batch = runner.execute_model_state.input_batch
    count = batch.num_reqs
    return Batch(
        request_ids=batch.req_ids[:count],
        first=batch.num_computed_tokens_np[:count],
        starts=batch.query_start_loc_np[: count + 1],
        table_rows=batch.idx_mapping_np[:count],
        states=runner.execute_model_state.hidden_states,
        slot_mapping=runner.block_tables.slot_mappings[group],
        block_table=runner.block_tables.block_tables[group].gpu,
    )


# --- the sampler ------------------------------------------------------------------------------------------------------


def _watch_sampler(sampler: Any, monitor: WorkerMonitor) -> None:
    """See the logits that go into the sampler and the tokens that come out: a module in V1, a plain class in V2."""
    if isinstance(sampler, torch.nn.Module):
        sampler.register_forward_pre_hook(
            lambda _module, args, kwargs: _before_sampling(monitor, argument(args, kwargs, 0, "logits")),
            with_kwargs=True,
        )
        sampler.register_forward_hook(lambda _module, _args, output: _after_sampling(monitor, output))
        return
    sampler.fastrm = monitor
    wrap(type(sampler), "__call__", _call_sampler)


def _call_sampler(original: Callable[..., Any], sampler: Any, *args: Any, **kwargs: Any) -> Any:
    monitor = getattr(sampler, "fastrm", None)
    if monitor is None:
        return original(sampler, *args, **kwargs)
    _before_sampling(monitor, argument(args, kwargs, 0, "logits"))
    output = original(sampler, *args, **kwargs)
    _after_sampling(monitor, output)
    return output


def _before_sampling(monitor: WorkerMonitor, logits: Any) -> None:
    if monitor.current is not None and logits is not None:
        with monitor.guard("tokens"):
            monitor.current.before_sampling(logits)


def _after_sampling(monitor: WorkerMonitor, output: Any) -> None:
    if monitor.current is not None:
        with monitor.guard("tokens"):
            monitor.current.after_sampling(output.sampled_token_ids)
