"""In the process that runs the model: what a step's final states say about the prompts that end in it.

    before sampling   keys of the step's image rows -> buffer; prompts whose last row is here -> relevance, signals
    while sampling    log probability and entropy of each chosen token
    with the result   one transfer to the host; read where the engine itself waits for its tokens

Everything is queued on the model's device and in its stream; no line here waits for it. Text-only requests cost a
look-up. Knows tensors and positions; `internals` reads them out of vLLM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastrm_monitor.errors import ProxyError
from fastrm_monitor.guard import Guard, logger
from fastrm_monitor.integrations.vllm.slots import Prompt, SlotKeys, prefix_tags
from fastrm_monitor.scoring.proxy import QueryRowProxy
from fastrm_monitor.scoring.scorer import Scorer
from fastrm_monitor.scoring.tokens import Distribution, Scratch, distribution


@dataclass(frozen=True, eq=False)
class NewPrompt:
    """A request that the engine hands to the model for the first time, or again.

    Attributes:
        request_id: the engine's.
        tokens: int64 (T,), the prompt; None where it came as embeddings.
        pictures: for each picture the positions of its tokens, int64 (N,), and the engine's hash of its content.
        salt: whatever else keeps the prefixes of two requests apart.
    """

    request_id: str
    tokens: np.ndarray | None
    pictures: Sequence[tuple[np.ndarray, str]]
    salt: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one step. R requests; rows from `starts[-1]` on are padding.

    Attributes:
        request_ids: R of them, in the order of the rows.
        first: int (R,), position of the first row of each.
        starts: int (R + 1,), where the rows of each begin.
        table_rows: int (R,), the block table's row of each.
        states: (rows, d), final hidden states after the model's final norm.
        slot_mapping: int (rows,), KV-cache slot of each row.
        block_table: int (table rows, blocks), on the device.
    """

    request_ids: Sequence[str]
    first: np.ndarray
    starts: np.ndarray
    table_rows: np.ndarray
    states: Tensor
    slot_mapping: Tensor
    block_table: Tensor


@dataclass(eq=False)
class _Watched:
    """A request with pictures; nothing of it is left to read where a step begins beyond `needed`."""

    positions: np.ndarray
    tags: np.ndarray
    length: int
    measured: bool = False
    needed: float = math.inf


@dataclass(frozen=True)
class Finding:
    """What the states said about one prompt.

    Attributes:
        relevance: float32 (N,) as bytes, at the prompt's image tokens in order; None when there is none.
        signals: what the states gave beside the map (`Measured.signals`).
        reason: why there is no relevance; None when there is.
    """

    relevance: bytes | None = None
    signals: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Sheet:
    """What the worker found out in one step; travels with the engine's own output.

    Attributes:
        findings: by request id.
        rows: int32 (M,), places in the step's batch whose chosen tokens were measured.
        numbers: float32 (M, 2), log probability and entropy of these tokens, in nats.
        failed: failures of monitoring since the last sheet, by stage.
        about: one line on what runs here; with the first sheet only.
        refused: whether this worker reads nothing, because its proxy is not this model's.
    """

    findings: dict[str, Finding]
    rows: np.ndarray
    numbers: np.ndarray
    failed: dict[str, int]
    about: str = ""
    refused: bool = False

    @classmethod
    def refusal(cls, about: str) -> Sheet:
        """The only sheet of a worker that reads nothing."""
        return cls({}, np.empty(0, np.int32), np.empty((0, 2), np.float32), {}, about, refused=True)


class WorkerMonitor:
    """Reads the steps of one model runner.

    Args:
        scorer: of the proxy, on the model's device.
        keys: the slot-indexed buffer.
        image_token_id: the token that stands for a patch.
        about: one line on what runs here, for `doctor`.

    Raises:
        ProxyError: the proxy's form needs every row of a prompt at once.
    """

    def __init__(self, scorer: Scorer, keys: SlotKeys, image_token_id: int, about: str) -> None:
        self._scorer, self._keys, self._image_token_id, self._about = scorer, keys, image_token_id, about
        self._watched: dict[str, _Watched] = {}
        self._unread: dict[str, Finding] = {}
        self._failed: Counter[str] = Counter()
        self._off: str | None = None
        self._scratch = Scratch()
        self.guard = Guard(lambda stage: self._failed.update([stage]))
        self.current: Step | None = None  # the step whose tokens are being chosen

    @staticmethod
    def query_row(scorer: Scorer) -> QueryRowProxy:
        """The proxy, if keys can be kept for it.

        Raises:
            ProxyError: they cannot.
        """
        proxy = scorer.folder.proxy
        if not isinstance(proxy, QueryRowProxy):
            raise ProxyError(
                f"The proxy at {scorer.folder.path} has the form {scorer.folder.config.form}, which needs every row of "
                "a prompt at once: distil one with `fastrm-monitor distill --form query-row` to serve with vLLM."
            )
        return proxy

    # --- before the forward pass ----------------------------------------------------------------------------------

    def admit(self, prompts: Iterable[NewPrompt], finished: Iterable[str]) -> None:
        """Learn which requests come and which are gone. A request that comes again is the same request."""
        for request_id in finished:
            self._watched.pop(request_id, None)
        for prompt in prompts:
            if not prompt.pictures or prompt.request_id in self._watched:
                continue
            if prompt.tokens is None:
                self._unread[prompt.request_id] = Finding(reason="prompt_embeds")
                continue
            positions = np.concatenate([positions for positions, _ in prompt.pictures])
            if not len(positions):
                continue
            if positions.max() >= len(prompt.tokens) or (prompt.tokens[positions] != self._image_token_id).any():
                self._switch_off("the engine's picture positions are not where the prompt has image tokens")
                self._unread[prompt.request_id] = Finding(reason=self._off)
                continue
            tags = prefix_tags(prompt.tokens, prompt.pictures, prompt.salt)[positions]
            self._watched[prompt.request_id] = _Watched(positions, tags, len(prompt.tokens))

    def _switch_off(self, why: str) -> None:
        """Better no map than a wrong one."""
        if self._off is None:
            self._off = "layout_mismatch"
            logger.warning("fastrm-monitor: answers are served unscored from here on: %s.", why)

    # --- between the forward pass and sampling --------------------------------------------------------------------

    def read(self, batch: Batch) -> Step:
        """Keep the keys of the step's image rows and score the prompts that end in it."""
        step = Step(self._unread, self._scratch)
        self._unread = {}
        if not _consistent(batch):
            self._switch_off("a step's rows are not laid out as expected")
        if self._off is not None:
            step.findings |= {
                request_id: Finding(reason=self._off) for request_id in batch.request_ids if request_id in self._watched
            }
            return step
        rows, tags, ends = [], [], []
        firsts, starts = batch.first.tolist(), batch.starts.tolist()  # plain numbers: this loop runs in every step
        for index, request_id in enumerate(batch.request_ids):
            watched = self._watched.get(request_id)
            if watched is None:
                continue
            step.rows.append(index)
            first = firsts[index]
            if first > watched.needed:
                continue  # its answer is being written
            start, end = starts[index], starts[index + 1]
            # Image rows of a measured prompt come by again after a preemption, in other blocks; whoever finds these
            # blocks in the engine's cache looks for the keys there.
            begin, stop = np.searchsorted(watched.positions, (first, first + end - start))
            if begin < stop:
                rows.append(watched.positions[begin:stop] - first + start)
                tags.append(watched.tags[begin:stop])
            if not watched.measured and first < watched.length <= first + end - start:
                watched.measured, watched.needed = True, int(watched.positions[-1])
                last = start + watched.length - 1 - first
                prompt = Prompt(int(batch.table_rows[index]), last, watched.positions, watched.tags)
                ends.append((request_id, prompt))
        with self.guard("projection"):
            if rows:
                self._keys.write(batch.states, batch.slot_mapping, np.concatenate(rows), np.concatenate(tags))
        if ends:
            with self.guard("score") as guarded:
                step.measure(self._scorer, self._keys, batch, ends)
            if guarded.failed:
                step.findings |= {request_id: Finding(reason="scorer_error") for request_id, _ in ends}
        return step

    def news(self) -> tuple[dict[str, int], str]:
        """Failures since the last call, by stage, and the line about this worker at the first one."""
        failed, self._failed = dict(self._failed), Counter()
        about, self._about = self._about, ""
        return failed, about


class Step:
    """The measurements of one step: made on the device in the engine's thread, read on the host wherever it waits."""

    def __init__(self, findings: dict[str, Finding], scratch: Scratch) -> None:
        self.rows: list[int] = []  # places in the batch of the requests with pictures
        self._scratch = scratch
        self.findings = findings
        self._prompts: list[tuple[str, int]] = []  # request id, N
        self._scores: Tensor | None = None  # (P, N_max + 1 + signals)
        self._signals: tuple[str, ...] = ()  # names of the last columns
        self._distribution: Distribution | None = None  # until the tokens are chosen
        self._numbers: Tensor | None = None  # (M, 2)
        self._ready: torch.cuda.Event | None = None
        self._failed: dict[str, int] = {}
        self._about = ""

    def measure(self, scorer: Scorer, keys: SlotKeys, batch: Batch, ends: Sequence[tuple[str, Prompt]]) -> None:
        """Queue relevance and signals of the prompts that end in this step."""
        scores, signals = keys.score(batch.states, batch.block_table, [prompt for _, prompt in ends], scorer.probe)
        self._signals = tuple(signals)
        self._scores = torch.cat([scores, *(value[:, None] for value in signals.values())], dim=1)
        self._prompts = [(request_id, len(prompt.positions)) for request_id, prompt in ends]

    @torch.inference_mode()
    def before_sampling(self, logits: Tensor) -> None:
        """The next tokens' distributions, from logits (requests of the batch, V) that sampling may overwrite."""
        if self.rows and self.rows[-1] < len(logits):
            own = logits if len(self.rows) == len(logits) else logits[self._index(logits.device)]
            self._distribution = distribution(own, self._scratch)

    @torch.inference_mode()
    def after_sampling(self, tokens: Tensor) -> None:
        """The chosen tokens (requests of the batch, 1) are known."""
        known, self._distribution = self._distribution, None
        if known is None or tokens.ndim != 2 or tokens.shape[1] != 1 or self.rows[-1] >= len(tokens):
            return  # speculative decoding: several tokens a step
        own = tokens if len(self.rows) == len(tokens) else tokens[self._index(tokens.device)]
        self._numbers = torch.stack([known.log_probability(own[:, 0]), known.entropy], dim=1)

    def _index(self, device: torch.device) -> Tensor:
        host = torch.tensor(self.rows)
        return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)

    def send(self, failed: dict[str, int], about: str) -> bool:
        """Queue the transfer to the host; whether there is anything to collect."""
        self._failed, self._about = failed, about
        on_device = [part for part in (self._scores, self._numbers) if part is not None]
        if on_device and on_device[0].device.type != "cpu":
            self._scores, self._numbers = (
                None if part is None else part.to("cpu", non_blocking=True) for part in (self._scores, self._numbers)
            )
            self._ready = torch.cuda.Event()
            self._ready.record()
        return bool(on_device or self.findings or failed or about)

    def collect(self) -> Sheet:
        """What was found out, on the host. Called where the engine waits for its tokens."""
        if self._ready is not None:
            self._ready.synchronize()
        findings = dict(self.findings)
        if self._scores is not None:
            scores = self._scores.numpy()
            width = scores.shape[1] - len(self._signals)
            for line, (request_id, count) in zip(scores, self._prompts, strict=True):
                covered = line[width - 1] > 0.5
                signals = dict(zip(self._signals, line[width:].tolist(), strict=True))
                findings[request_id] = (
                    Finding(line[:count].tobytes(), signals) if covered else Finding(reason="keys_missing")
                )
        numbers = self._numbers.numpy() if self._numbers is not None else np.empty((0, 2), np.float32)
        rows = np.array(self.rows if len(numbers) else [], dtype=np.int32)
        return Sheet(findings, rows, numbers, self._failed, self._about)


def _consistent(batch: Batch) -> bool:
    """Whether the rows of the step can be what `Batch` says."""
    count = len(batch.request_ids)
    if len(batch.starts) != count + 1:
        return False
    rows = int(batch.starts[-1])
    return (
        len(batch.first) == len(batch.table_rows) == count
        and rows <= len(batch.states)
        and rows <= len(batch.slot_mapping)
        and bool((np.diff(batch.starts) > 0).all())
    )
