"""Projected patch keys in a buffer indexed by KV-cache slot, and the scoring of prompts from it.

    KV cache   | block 0 ........ | block 1 ........ | block 2 ........ |   the engine's
    keys       | d_k numbers a slot ...                                  |   W_k Norm(h) of the token in the slot
    tags       | one int64 a slot ...                                    |   which token, after which prompt

A prefix that the engine finds in its cache is not computed again, so its states never come by; its keys still lie at
the slots of its blocks. What fills a block without a forward pass (a KV connector) leaves the keys of the block's
last owner behind: each slot carries a tag made of the whole prompt up to its token, and a prompt whose tags do not
match is reported as not covered, never scored. Knows tensors, not engines. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from fastrm_monitor.scoring.proxy import QueryRowProxy

_ROWS_AT_ONCE = 1024
"""Rows projected at once: bounds the float32 copy of their states."""
_NUMBERS_AT_ONCE = 1 << 24
"""Key numbers gathered at once when scoring: 64 MiB in float32."""
_HEAD = 3
"""Numbers in front of a prompt's positions in the transfer."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt whose last row has just been computed.

    Attributes:
        table_row: its row of the block table.
        last: row of `states` at t, the position that predicts the answer's first token.
        positions: int64 (N,), positions of its image tokens, ascending.
        tags: int64 (N,), what the slots must carry.
    """

    table_row: int
    last: int
    positions: np.ndarray
    tags: np.ndarray


class SlotKeys:
    """The buffer.

    Args:
        proxy: the query-row proxy, on the engine's device.
        slots: number of KV-cache slots, `num_blocks * block_size`.
        block_size: slots a block of the block table.
        dtype: of the keys; the model's, so that they take d_k * 2 bytes a slot where the model serves in 16 bits.
        device: the engine's.
    """

    def __init__(
        self, proxy: QueryRowProxy, *, slots: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._proxy, self._block_size, self._device = proxy, block_size, device
        self.keys = torch.zeros(slots, proxy.config.key_size, dtype=dtype, device=device)
        self.tags = torch.zeros(slots, dtype=torch.int64, device=device)  # 0 is nobody's tag

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.keys.nbytes + self.tags.nbytes

    @torch.inference_mode()
    def write(self, states: Tensor, slot_mapping: Tensor, rows: np.ndarray, tags: np.ndarray) -> None:
        """Keep the keys of image tokens.

        Args:
            states: (rows of the step, d), final hidden states after the model's final norm.
            slot_mapping: int (rows of the step,), the KV-cache slot of each.
            rows: int64 (M,), which of them are image tokens.
            tags: int64 (M,), their tags.
        """
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            index = self._put(rows[part])
            slots = slot_mapping[index].long()
            self.keys.index_copy_(0, slots, self._proxy.keys(states[index]).to(self.keys.dtype))
            self.tags.index_copy_(0, slots, self._put(tags[part]))

    @torch.inference_mode()
    def score(
        self,
        states: Tensor,
        block_table: Tensor,
        prompts: Sequence[Prompt],
        probe: Callable[[Tensor], dict[str, Tensor]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Relevance and signals of finished prompts.

        Args:
            states: (rows of the step, d).
            block_table: int (rows, blocks), the engine's, on the device.
            prompts: P of them.
            probe: gives the signals that the states (P, d) at t alone hold, `Scorer.probe`.

        Returns:
            Float32 (P, N_max + 1): relevance at the image positions, padded; in the last column 1 where every slot
            held the key of its token, else 0. And the signals, float32 (P,) each, by name.
        """
        longest = max(len(prompt.positions) for prompt in prompts)
        # One transfer: table row, row at t, N, then positions and tags, padded with the prompt's first image token.
        packed = np.empty((len(prompts), _HEAD + 2 * longest), dtype=np.int64)
        for line, prompt in zip(packed, prompts, strict=True):
            count = len(prompt.positions)
            line[:_HEAD] = prompt.table_row, prompt.last, count
            for offset, values in ((_HEAD, prompt.positions), (_HEAD + longest, prompt.tags)):
                line[offset : offset + count] = values
                line[offset + count : offset + longest] = values[0]
        on_device = self._put(packed)
        last = states[on_device[:, 1]]
        at_once = max(1, _NUMBERS_AT_ONCE // (longest * self._proxy.config.key_size))
        parts, signals = [], []
        for start in range(0, len(prompts), at_once):
            part = slice(start, start + at_once)
            scores, own = self._score(last[part], block_table, on_device[part], longest)
            parts.append(scores)
            signals.append(own)
        return torch.cat(parts), {
            **probe(last),
            **{name: torch.cat([own[name] for own in signals]) for name in signals[0]},
        }

    def _score(
        self, last: Tensor, block_table: Tensor, packed: Tensor, longest: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        positions, tags = packed[:, _HEAD : _HEAD + longest], packed[:, _HEAD + longest :]
        image = torch.arange(longest, device=packed.device) < packed[:, 2:3]
        blocks = block_table[packed[:, :1], positions // self._block_size].long()
        slots = blocks * self._block_size + positions % self._block_size  # (P, N_max)
        reading = self._proxy.match(self.keys[slots].float(), last, image)
        covered = (self.tags[slots] == tags).all(dim=1, keepdim=True)
        return torch.cat([torch.sigmoid(reading.relevance), covered.float()], dim=1), reading.signals(image)

    def _put(self, array: np.ndarray) -> Tensor:
        """A host array on the device, without waiting for the transfer."""
        host = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)


def prefix_tags(tokens: np.ndarray, pictures: Sequence[tuple[np.ndarray, str]], salt: str) -> np.ndarray:
    """For each position a number that stands for the prompt up to it.

    Equal prefixes, pictures included, have equal tags; others differ but for one chance in 2^64. The engine reuses a
    block under the same condition.

    Args:
        tokens: int64 (T,), the prompt.
        pictures: for each picture its positions, int64 (N,), and the engine's hash of its content.
        salt: whatever else keeps prefixes apart, such as an adapter's name.

    Returns:
        Int64 (T,), never 0.
    """
    mixed = tokens.astype(np.uint64)
    for positions, identity in pictures:
        mixed[positions] ^= _number(identity)
    with np.errstate(over="ignore"):
        places = np.arange(1, len(mixed) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = _scramble(mixed ^ _scramble(places + _number(salt)))
        tags = _scramble(np.cumsum(mixed, dtype=np.uint64))
    tags[tags == 0] = 1
    return tags.view(np.int64)


def _number(text: str) -> np.uint64:
    """64 bits of a text's hash; the same in every process."""
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest()))


def _scramble(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: spreads every bit of each value over all of it."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
