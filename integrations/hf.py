"""transformers: `instrument(model, processor)` and then the user's own `model.generate(...)`, unchanged.

Three hooks and one wrapper. A hook on the final norm scores the prompt in the pass that computes it; two hooks on the
model see prompt and logits; the wrapper of `generate` knows when an answer is complete. All of them only read. What
goes wrong in here is counted and swallowed, the answer is served; errors of `generate` itself pass through unmodified.
"""

from __future__ import annotations

import functools
import threading
import time
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from opentelemetry import context as otel_context
from torch import Tensor

from fastrm_monitor.errors import ModelError
from fastrm_monitor.guard import log_once
from fastrm_monitor.integrations.prompts import question_of
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.scoring.anatomy import anatomy_of
from fastrm_monitor.scoring.patches import PatchGrid, PictureInput, layout_for
from fastrm_monitor.scoring.scorer import Measured, answer_features
from fastrm_monitor.scoring.tokens import Distribution, Scratch, distribution
from fastrm_monitor.types import Answer, Assessment

if TYPE_CHECKING:
    from PIL.Image import Image

_KEPT_ASSESSMENTS = 10_000
"""Assessments kept for `Handle.pop`; older ones are forgotten, so that nobody has to call it."""


@dataclass(frozen=True, eq=False)
class Request:
    """What the caller knows of a request and the engine does not; see `Handle.requests`.

    Attributes:
        id: the caller's id; one is made up when None.
        question: the plain question; read from the prompt when None.
        pictures: the original pictures, in prompt order; what the model saw is kept when empty.
        user_key: the caller's key of the user, for deletion on request.
    """

    id: str | None = None
    question: str | None = None
    pictures: Sequence[Image] = ()
    user_key: str | None = None


@dataclass(eq=False)
class _Capture:
    """What one call of `generate` shows. B rows, T prompt tokens."""

    requests: Sequence[Request]
    started_ns: int
    context: Any
    unreadable: bool = False  # the prompt came as embeddings
    pictured: bool = True
    ids: Tensor | None = None  # (B, T)
    valid: Tensor | None = None  # (B, T) bool
    measured: Measured | None = None
    seconds: float = 0.0
    scratch: Scratch = field(default_factory=Scratch)
    newest: Distribution | None = None  # of the newest step, until its token is known
    steps: list[tuple[Tensor, Tensor, Tensor]] | None = None  # tokens, their log probabilities, entropies; (B,) each

    @property
    def rows(self) -> int:
        """B, or 1 when nothing was seen."""
        return len(self.ids) if self.ids is not None else 1


@dataclass(frozen=True, eq=False)
class _Call:
    """What the caller gave to one call of `generate`.

    Attributes:
        prompt: the token ids (B', T); None when it gave none. Several answers a prompt make B a multiple of B'.
        pictures: what is known of the pictures, those of the first prompt first.
        ends: the tokens that end an answer.
        pad: what follows the end of an answer.
    """

    prompt: Tensor | None
    pictures: Sequence[PictureInput]
    ends: tuple[int, ...]
    pad: int | None


class Handle:
    """An instrumented model; made by `instrument`."""

    def __init__(self, model: Any, processor: Any, monitor: Monitor, model_name: str | None) -> None:
        anatomy = anatomy_of(model)
        anatomy.check(monitor.scorer.folder)
        self.monitor = monitor
        self._model = model
        self._name = model_name or anatomy.name
        self._layout = layout_for(model.config, processor)
        self._tokenizer: Any = getattr(processor, "tokenizer", None)
        if self._tokenizer is None:
            raise ModelError("The processor has no tokenizer: pass the LVLM's processor, e.g. from AutoProcessor.")
        self._pictures: Any = getattr(processor, "image_processor", None)
        self._local = threading.local()
        self._finished: deque[tuple[int, Assessment]] = deque(maxlen=_KEPT_ASSESSMENTS)
        self.after_fork()
        renew_in_child(self)
        weight = getattr(anatomy.norm, "weight", None)
        monitor.scorer.to(weight.device if weight is not None else model.device)
        self._own_generate = model.__dict__.get("generate")
        self._generate = model.generate
        model.generate = _Watched(self, self._generate)
        model._fastrm_handle = self
        self._hooks = [
            anatomy.norm.register_forward_hook(self._after_norm),
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward),
        ]

    def after_fork(self) -> None:
        """In a child process: a lock that nobody holds."""
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return _let_go()

    def __reduce__(self) -> tuple[Any, ...]:
        return _let_go, ()

    # --- for the caller -------------------------------------------------------------------------------------------

    def pop(self, *, all_threads: bool = False) -> list[Assessment]:
        """Take the assessments of the answers finished since the last call, in batch order.

        Args:
            all_threads: also those of answers that other threads generated.
        """
        mine = threading.get_ident()
        with self._lock:
            taken = [one for thread, one in self._finished if all_threads or thread == mine]
            kept = [(thread, one) for thread, one in self._finished if not all_threads and thread != mine]
            self._finished.clear()
            self._finished.extend(kept)
        return taken

    @contextmanager
    def requests(self, requests: Sequence[Request]) -> Iterator[None]:
        """Describe the rows of the `generate` calls inside, in batch order; this thread only."""
        before = getattr(self._local, "requests", ())
        self._local.requests = (requests,) if isinstance(requests, Request) else tuple(requests)
        try:
            yield
        finally:
            self._local.requests = before

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all finished answers are stored and exported; see `Monitor.flush`."""
        return self.monitor.flush(timeout)

    def remove(self) -> None:
        """Leave the model as it was, flush and close; idempotent."""
        if _handle_of(self._model) is self:
            for hook in self._hooks:
                hook.remove()
            if isinstance(self._model.__dict__.get("generate"), _Watched):  # else somebody wrapped it since
                if self._own_generate is None:
                    del self._model.generate
                else:
                    self._model.generate = self._own_generate
            del self._model._fastrm_handle
        self.monitor.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # --- the wrapper ----------------------------------------------------------------------------------------------

    def _watch(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = _Capture(getattr(self._local, "requests", ()), time.time_ns(), otel_context.get_current())
        # Looking for image tokens instead would make the host wait for the device.
        capture.pictured = any(
            value is not None for name, value in kwargs.items() if name.startswith(("pixel_", "image_", "mm_"))
        )
        outer = getattr(self._local, "capture", None)
        self._local.capture = capture
        try:
            output = original(*args, **kwargs)
        except BaseException:
            for _ in range(capture.rows):
                self.monitor.skip("", "generation_failed")
            raise
        finally:
            self._local.capture = outer
        done = len(self._finished)
        with self.monitor.guard("score") as guarded:
            sequences = output if isinstance(output, Tensor) else output.sequences
            self._finish(capture, sequences, self._call(args, kwargs))
        if guarded.failed and len(self._finished) == done:
            self._keep([self.monitor.skip(str(uuid.uuid4()), "scorer_error") for _ in range(capture.rows)])
        return output

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        given = kwargs.get("generation_config", args[1] if len(args) > 1 else None)

        def setting(name: str) -> Any:
            for source in (kwargs.get(name), getattr(given, name, None)):
                if source is not None:
                    return source
            return getattr(self._model.generation_config, name, None)

        ends, pad = setting("eos_token_id"), setting("pad_token_id")
        ends = [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()
        return _Call(
            prompt=ids if isinstance(ids, Tensor) and ids.ndim == 2 else None,
            pictures=_split_pictures(kwargs),
            ends=tuple(int(end) for end in ends),
            pad=int(pad) if pad is not None else None,
        )

    # --- the hooks ------------------------------------------------------------------------------------------------

    # Decoding may be compiled (transformers does so by itself with a static cache): the hooks stay outside of it.

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        capture: _Capture | None = getattr(self._local, "capture", None)
        if capture is None:
            return
        with self.monitor.guard("capture"):
            ids = kwargs.get("input_ids")
            if capture.ids is None and kwargs.get("inputs_embeds") is not None:
                capture.unreadable = True  # later passes have ids, but they are the answer's
            elif capture.unreadable:
                return
            elif capture.ids is None and ids is not None:
                capture.ids = ids
                mask = kwargs.get("attention_mask")
                if mask is None or mask.shape != ids.shape:
                    mask = torch.ones_like(ids)
                capture.valid = mask.bool()
                capture.steps = []
            elif capture.newest is not None and ids is not None:
                self._close_step(capture, ids[:, -1])

    def _after_norm(self, _module: Any, _args: Any, states: Tensor) -> None:
        if torch.compiler.is_compiling():  # a pass that decodes; the prompt's is never compiled
            return
        capture: _Capture | None = getattr(self._local, "capture", None)
        if capture is None or capture.measured is not None or capture.ids is None or capture.valid is None:
            return
        with self.monitor.guard("capture"):
            if states.shape[:2] != capture.ids.shape:
                return  # the prompt comes in pieces; `_finish` says so
            began = time.perf_counter()
            if capture.pictured:
                device = states.device
                image = capture.ids == self._layout.image_token_id
                capture.measured = self.monitor.scorer.measure(states, image.to(device), capture.valid.to(device))
            capture.seconds += time.perf_counter() - began

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, _module: Any, _args: Any, output: Any) -> None:
        capture: _Capture | None = getattr(self._local, "capture", None)
        if capture is None or capture.ids is None:
            return
        with self.monitor.guard("capture"):
            logits = output.logits if hasattr(output, "logits") else output[0]
            capture.newest = distribution(logits[:, -1], capture.scratch)

    @staticmethod
    def _close_step(capture: _Capture, tokens: Tensor) -> None:
        """The tokens (B,) that were chosen from the newest logits are known: keep what is needed, drop the rest."""
        known, capture.newest = capture.newest, None
        if known is None or capture.steps is None or len(tokens) != len(known.entropy):
            return
        capture.steps.append((tokens, known.log_probability(tokens.to(known.weights.device)), known.entropy))

    # --- when the answers are complete -----------------------------------------------------------------------------

    def _finish(self, capture: _Capture, sequences: Tensor, call: _Call) -> None:
        """Assess, keep and record every row of a finished call; `sequences` are prompts and answers (B, T + S)."""
        began = time.perf_counter()
        ended_ns = time.time_ns()
        ids = capture.ids
        if ids is None:
            reason = "no_input_ids"
        elif call.prompt is not None and call.prompt.shape[1] != ids.shape[1]:
            reason = "partial_prefill"  # the prompt came in pieces, or part of it was in the caller's cache
        elif len(sequences) != len(ids) or not torch.equal(sequences[:, : ids.shape[1]].to(ids.device), ids):
            reason = "rows_do_not_match"  # beams or a custom loop rearranged the rows
        else:
            reason = None
        if ids is None or reason is not None or capture.valid is None:
            for _ in range(len(sequences)):
                self._keep([self.monitor.skip(str(uuid.uuid4()), reason or "no_input_ids")])
            return
        if capture.newest is not None:
            self._close_step(capture, sequences[:, -1])
        answers = sequences[:, ids.shape[1] :].cpu()
        lengths, finished = _lengths(answers, call)
        numbers = self._answer_numbers(capture, answers, lengths)
        prompts, valid = ids.cpu(), capture.valid.cpu()
        image = prompts == self._layout.image_token_id
        rows = capture.measured.rows() if capture.measured is not None else None
        pictures = call.pictures
        times = max(len(ids) // len(call.prompt), 1) if call.prompt is not None else 1  # answers a prompt, side by side
        requests = self._spread(capture.requests, len(ids), times)
        assessments: list[Assessment] = []
        taken = 0
        seconds = (capture.seconds + time.perf_counter() - began) / len(ids)
        for row in range(len(ids)):
            request = requests[row]
            request_id = request.id or str(uuid.uuid4())
            tokens = int(image[row].sum())
            own: Sequence[PictureInput] = ()
            grids: list[PatchGrid] = []
            assessment = None
            began = time.perf_counter()
            with self.monitor.guard("score") as guarded:
                if tokens:
                    grids = self._layout.grids(tokens, _with_sizes(pictures[taken:], request.pictures))
                    own = pictures[taken : taken + len(grids)]
                    if (row + 1) % times == 0:
                        taken += len(grids)
                if not tokens:
                    assessment = self.monitor.skip(request_id, "no_image")
                elif rows is None:
                    assessment = self.monitor.skip(request_id, "capture_failed")
                elif not np.isfinite(rows[row][0]).all():
                    assessment = self.monitor.skip(request_id, "states_not_finite")
                else:
                    relevance, signals = rows[row]
                    spent = seconds + time.perf_counter() - began
                    assessment = self.monitor.assess(
                        request_id, relevance, grids, signals=signals, answer=numbers[row], seconds=spent
                    )
            if guarded.failed or assessment is None:
                assessment = self.monitor.skip(request_id, "scorer_error")
            assessments.append(assessment)
            with self.monitor.guard("record") as guarded:
                self.monitor.record(
                    Answer(
                        request_id=request_id,
                        model=self._name,
                        question=request.question
                        or question_of(
                            self._tokenizer,
                            prompts[row][valid[row]].tolist(),
                            self._layout.image_token_id,
                        ),
                        text=self._tokenizer.decode(answers[row, : lengths[row]], skip_special_tokens=True).strip(),
                        pictures=self._picture_makers(request, own, assessment),
                        started_ns=capture.started_ns,
                        ended_ns=ended_ns,
                        input_tokens=int(valid[row].sum()),
                        output_tokens=int(lengths[row]),
                        finish_reason="stop" if finished[row] else "length",
                        context=capture.context,
                        user_key=request.user_key,
                    ),
                    assessment,
                )
            if guarded.failed:
                self.monitor.lost(assessment, "record_error")
        self._keep(assessments)

    def _keep(self, assessments: list[Assessment]) -> None:
        thread = threading.get_ident()
        with self._lock:
            self._finished.extend((thread, one) for one in assessments)

    def _spread(self, requests: Sequence[Request], rows: int, times: int) -> list[Request]:
        """One request for each row; a prompt that is answered several times owns that many neighbouring rows."""
        if len(requests) == rows:
            return list(requests)
        if len(requests) * times == rows:
            return [request for request in requests for _ in range(times)]
        if requests:  # nobody knows which row is whose, and a wrong name is worse than none
            self.monitor.counters.add("failed", "requests")
            mismatch = ValueError(f"{len(requests)} requests for {rows // times} prompts")
            log_once("fastrm-monitor: requests(...) must name every prompt of the batch: %s", "requests", mismatch)
        return [Request()] * rows

    def _answer_numbers(self, capture: _Capture, answers: Tensor, lengths: np.ndarray) -> list[dict[str, float]]:
        """`token_probability` and `token_entropy` of each row; empty when the steps are not those of the answers."""
        nothing: list[dict[str, float]] = [{} for _ in range(len(answers))]
        if not capture.steps or len(capture.steps) != answers.shape[1]:
            return nothing
        tokens, chosen, entropy = (torch.stack(part, 1).cpu() for part in zip(*capture.steps, strict=True))
        if not torch.equal(tokens, answers):
            return nothing  # beam search or assisted generation: another path than the one that was watched
        return [
            # An empty answer is judged by its end token: that is what the model said.
            answer_features(chosen[row, : max(length, 1)].tolist(), entropy[row, : max(length, 1)].tolist())
            for row, length in enumerate(lengths)
        ]

    def _picture_makers(
        self, request: Request, own: Sequence[PictureInput], assessment: Assessment
    ) -> tuple[Callable[[], Image], ...]:
        if assessment.case_id is None:
            return ()
        if request.pictures:
            return tuple(functools.partial(_as_rgb, picture) for picture in request.pictures)
        tensors = [one.inputs.get("pixel_values") for one in own]
        return tuple(self._seen(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim == 3)

    def _seen(self, pixels: Tensor) -> Callable[[], Image]:
        """What the model saw of a picture: its tensor (3, H, W) with the processor's normalisation undone."""
        values = pixels.detach().float()
        if getattr(self._pictures, "do_normalize", False):
            mean, std = (
                torch.tensor(numbers, device=values.device)[:, None, None]
                for numbers in (self._pictures.image_mean, self._pictures.image_std)
            )
            values = values * std + mean
        array = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return functools.partial(_from_array, array)


def instrument(
    model: Any,
    processor: Any,
    *,
    proxy: str | Path | None = None,
    store: str | None = None,
    monitor: Monitor | None = None,
    model_name: str | None = None,
    **settings: Any,
) -> Handle:
    """Watch every answer of a transformers LVLM.

        handle = fastrm_monitor.instrument(model, processor, proxy="proxy/", store="sqlite:///fastrm.db")
        output = model.generate(**inputs)      # as always
        for assessment in handle.pop(): ...

    Args:
        model: e.g. a `LlavaForConditionalGeneration`.
        processor: the model's processor.
        proxy: folder of a proxy distilled from this model; default `FASTRM_PROXY`.
        store: SQLAlchemy URL of the store; default `FASTRM_STORE`, and nothing is stored without one.
        monitor: a monitor made with `Monitor.open`, in place of the settings; closed by `Handle.remove`.
        model_name: name of the model in telemetry and records; default its hub id.
        **settings: further fields of `Settings`, e.g. `threshold=0.4`.

    Returns:
        The handle: `pop()` for the assessments, `remove()` to stop.

    Raises:
        FastRMError: a setting, the proxy, the model or the store cannot be used; the sentence says what to do.
    """
    if _handle_of(model) is not None:
        raise ModelError("This model is instrumented already: call remove() on its handle first.")
    anatomy = anatomy_of(model)
    layout_for(model.config, processor)
    opened = monitor
    if opened is None:
        opened = Monitor.open(proxy=proxy, store=store, provider="transformers", **settings)
    try:
        anatomy.check(opened.scorer.folder)
        return Handle(model, processor, opened, model_name)
    except BaseException:
        if monitor is None:
            opened.close()
        raise


class _Watched:
    """Stands in for `model.generate`; a copy or pickle of the model gets its class's own `generate` instead."""

    def __init__(self, handle: Handle, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._handle, self._original = handle, original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _handle_of(self._handle._model) is not self._handle:  # removed, and somebody still holds this
            return self._original(*args, **kwargs)
        return self._handle._watch(self._original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _bare_generate(memo[id(self._handle._model)])

    def __reduce__(self) -> tuple[Any, ...]:
        return _bare_generate, (self._handle._model,)


def _bare_generate(model: Any) -> Any:
    return types.MethodType(type(model).generate, model)


def _let_go() -> Handle:
    """What a copied or unpickled model has in a handle's place: its hooks see no capture and do nothing."""
    handle = object.__new__(Handle)
    handle._model, handle._local = None, threading.local()
    return handle


def _handle_of(model: Any) -> Handle | None:
    """The handle that watches the model; a copy of a watched model has none."""
    handle: Handle | None = getattr(model, "_fastrm_handle", None)
    return handle if handle is not None and handle._model is model else None


_PICTURE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw")


def _split_pictures(inputs: dict[str, Any]) -> list[PictureInput]:
    """One `PictureInput` for each picture of a call, from the processor's outputs among its arguments."""
    found = {name: inputs[name] for name in _PICTURE_INPUTS if inputs.get(name) is not None}
    if not found:
        return []
    # With a dynamic grid `pixel_values` holds patches, not pictures: the shortest output counts pictures.
    pictures = min(len(value) for value in found.values())
    given = {name: value for name, value in found.items() if len(value) == pictures}
    return [PictureInput(None, {name: value[k] for name, value in given.items()}) for k in range(pictures)]


def _with_sizes(known: Sequence[PictureInput], originals: Sequence[Image]) -> list[PictureInput]:
    """What is known of the pictures from here on, the first ones with the sizes of the caller's originals."""
    return [
        PictureInput(originals[k].size if k < len(originals) else None, known[k].inputs if k < len(known) else {})
        for k in range(max(len(known), len(originals)))
    ]


def _lengths(answers: Tensor, call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each answer (B, S) before its end token or padding, and whether it ended before its room did."""
    is_end = torch.isin(answers, torch.tensor(call.ends, dtype=answers.dtype)).numpy()
    ended = np.asarray(is_end.any(1))
    # A stopping criterion ends an answer without an end token; what tells is the padding behind it.
    padding = np.zeros_like(is_end) if call.pad is None else (answers == call.pad).numpy()
    trailing = np.cumprod(padding[:, ::-1], axis=1).sum(1)
    return np.where(ended, is_end.argmax(1), answers.shape[1] - trailing), ended | (trailing > 0)


def _as_rgb(picture: Image) -> Image:
    return picture.convert("RGB")


def _from_array(array: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(array)
