"""The engine core: what the workers found out goes on with the scheduler's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrm_monitor.integrations.vllm.internals import argument
from fastrm_monitor.integrations.vllm.ledger import ENTRY, Ledger
from fastrm_monitor.integrations.vllm.responses import FIELD


def update_from_output(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the method of that name, for every scheduler of this process."""
    outputs = original(scheduler, *args, **kwargs)
    ledger: Ledger | None = getattr(scheduler, FIELD, None)
    if ledger is None:
        ledger = scheduler.fastrm = Ledger()
    with ledger.guard("drain"):
        _stamp(ledger, scheduler, outputs, argument(args, kwargs, 1, "model_runner_output"))
        ledger.forget(argument(args, kwargs, 0, "scheduler_output").finished_req_ids)
    return outputs


def _stamp(ledger: Ledger, scheduler: Any, outputs: Any, result: Any) -> None:
    sheet = getattr(result, FIELD, None)
    numbers = ledger.note(sheet, result.req_ids) if sheet is not None else {}
    if ledger.idle:
        return
    for output in (one for batch in outputs.values() for one in batch.outputs):
        request_id, finished = output.request_id, output.finish_reason is not None
        ledger.token(request_id, numbers.get(request_id), len(output.new_token_ids))
        if not finished:
            request = scheduler.requests.get(request_id)
            if request is None or request.sampling_params is None or not request.sampling_params.stop:
                continue  # else the front end may end the answer, at a stop string
        entry = ledger.take(request_id, finished=finished)
        if entry is not None:
            output.trace_headers = {**(output.trace_headers or {}), ENTRY: entry}
