"""Keys by KV-cache slot: whatever order chunks and prompts come in, the map is that of the whole prompt, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrm_monitor.integrations.vllm import slots
from fastrm_monitor.integrations.vllm.slots import Prompt, SlotKeys, prefix_tags
from tests.tiny import tiny_scorer

WIDTH, KEY_SIZE = 8, 4
IMAGE = 4
"""The image token."""

NO_DEADLINE = settings(deadline=None, max_examples=40)


# --- tags -------------------------------------------------------------------------------------------------------------


@st.composite
def prompts(draw):
    """(tokens, pictures, salt): words from a small vocabulary, none to two pictures of one to three patches."""
    tokens = draw(st.lists(st.integers(5, 9), min_size=1, max_size=12))
    pictures = []
    for _ in range(draw(st.integers(0, 2))):
        patches, start = draw(st.integers(1, 3)), len(tokens)
        tokens += [IMAGE] * patches + draw(st.lists(st.integers(5, 9), max_size=4))
        pictures.append((np.arange(start, start + patches), draw(st.sampled_from(["cat", "dog"]))))
    return np.array(tokens), pictures, draw(st.sampled_from(["", "adapter"]))


@NO_DEADLINE
@given(prompts(), st.lists(st.integers(5, 9), min_size=1, max_size=4))
def test_equal_prefixes_have_equal_tags(prompt, more):
    """What follows a token changes nothing at it: a cached prefix keeps its tags under every continuation."""
    tokens, pictures, salt = prompt
    longer = prefix_tags(np.concatenate([tokens, more]), pictures, salt)
    assert longer[: len(tokens)].tolist() == prefix_tags(tokens, pictures, salt).tolist()


@NO_DEADLINE
@given(prompts())
def test_tags_within_a_prompt_differ(prompt):
    """Equal tokens, such as a picture's patches, have a tag for each place; 0, which empty slots carry, is none."""
    tags = prefix_tags(*prompt).tolist()
    assert len({0, *tags}) == len(tags) + 1


@NO_DEADLINE
@given(prompts(), st.data())
def test_another_token_changes_all_tags_from_it_on(prompt, data):
    """A prompt that differs in one token shares the tags before it and none after."""
    tokens, pictures, salt = prompt
    place = data.draw(st.integers(0, len(tokens) - 1))
    other = tokens.copy()
    other[place] += data.draw(st.integers(1, 5))
    mine, theirs = prefix_tags(tokens, pictures, salt), prefix_tags(other, pictures, salt)
    assert (mine == theirs).tolist() == [True] * place + [False] * (len(tokens) - place)


@NO_DEADLINE
@given(prompts().filter(lambda one: one[1]), st.data())
def test_another_picture_changes_all_tags_from_it_on(prompt, data):
    """The same tokens with another picture behind them share no tag from its first patch on."""
    tokens, pictures, salt = prompt
    number = data.draw(st.integers(0, len(pictures) - 1))
    positions, identity = pictures[number]
    changed = [*pictures[:number], (positions, identity + "'"), *pictures[number + 1 :]]
    mine, theirs = prefix_tags(tokens, pictures, salt), prefix_tags(tokens, changed, salt)
    assert (mine == theirs).tolist() == [True] * positions[0] + [False] * (len(tokens) - positions[0])


@NO_DEADLINE
@given(st.lists(st.integers(5, 9), max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_a_picture_elsewhere_changes_all_tags_from_there_on(words, patches, by):
    """The same run of image tokens whose picture begins later has other tags from the first difference on."""
    tokens = np.array([*words, *[IMAGE] * (patches + by)])
    at, later = np.arange(patches) + len(words), np.arange(patches) + len(words) + by
    mine, theirs = prefix_tags(tokens, [(at, "cat")], ""), prefix_tags(tokens, [(later, "cat")], "")
    assert (mine == theirs).tolist() == [True] * len(words) + [False] * (patches + by)


def test_two_pictures_in_another_order():
    """Two pictures that change places share no tag from the first on, though the prompt has the same parts."""
    tokens = np.array([1, IMAGE, IMAGE, IMAGE, IMAGE, 7])
    first, second = np.array([1, 2]), np.array([3, 4])
    mine = prefix_tags(tokens, [(first, "cat"), (second, "dog")], "")
    theirs = prefix_tags(tokens, [(first, "dog"), (second, "cat")], "")
    assert (mine == theirs).tolist() == [True] + [False] * 5


@NO_DEADLINE
@given(prompts(), st.sampled_from(["other", "Adapter", "adapter "]))
def test_another_salt_changes_all_tags(prompt, salt):
    """Requests of different adapters share no tag."""
    tokens, pictures, own = prompt
    assert not (prefix_tags(tokens, pictures, own) == prefix_tags(tokens, pictures, salt)).any()


# --- keys -------------------------------------------------------------------------------------------------------------


@dataclass
class Placed:
    """A prompt with made-up states and the blocks that the engine gave it."""

    states: torch.Tensor  # (T, d)
    positions: np.ndarray
    tags: np.ndarray
    blocks: list[int]
    waiting: list[np.ndarray] = field(default_factory=list)  # chunks of positions that are still to be computed

    def slots(self, positions, block_size):
        return torch.tensor([self.blocks[p // block_size] * block_size + p % block_size for p in positions.tolist()])

    def write(self, buffer, block_size, positions=None):
        """One step: the rows of these positions (all by default) and a padding row before the next step's."""
        positions = np.arange(len(self.states)) if positions is None else positions
        rows = np.flatnonzero(np.isin(positions, self.positions))
        mapping = torch.cat([self.slots(positions, block_size), torch.tensor([-1])]).int()
        states = torch.cat([self.states[positions], torch.full((1, WIDTH), torch.nan)])
        buffer.write(states, mapping, rows, self.tags[np.searchsorted(self.positions, positions[rows])])


@cache
def proxy():
    return tiny_scorer(width=WIDTH).folder.proxy


def buffer_of(blocks, block_size, dtype=torch.float32):
    return SlotKeys(proxy(), slots=blocks * block_size, block_size=block_size, dtype=dtype, device=torch.device("cpu"))


def placed(length, positions, blocks, seed):
    rng = np.random.default_rng(seed)
    states = torch.from_numpy(rng.normal(size=(length, WIDTH)).astype(np.float32))
    return Placed(states, np.array(positions), rng.integers(1, 1 << 60, len(positions)), blocks)


def scored(buffer, placed, order=None, spare_rows=0):
    """(relevance, covered, signals) of each prompt; the block table has another order and `spare_rows` idle rows."""
    count = len(placed) + spare_rows
    order = np.arange(count) if order is None else order
    table = torch.zeros(count, max(len(one.blocks) for one in placed) + 1, dtype=torch.int32)
    for row, one in zip(order, placed, strict=False):
        table[row, : len(one.blocks)] = torch.tensor(one.blocks, dtype=torch.int32)
    states = torch.stack([one.states[-1] for one in placed])
    asked = [
        Prompt(int(row), number, one.positions, one.tags)
        for number, (row, one) in enumerate(zip(order, placed, strict=False))
    ]
    numbers, signals = buffer.score(states, table, asked, lambda last: {"sum": last.sum(1)})
    assert signals.pop("sum").tolist() == states.sum(1).tolist()
    rows = torch.stack(list(signals.values()), 1).tolist()
    return [
        (line[: len(one.positions)], float(line[-1]), dict(zip(signals, row, strict=True)))
        for line, row, one in zip(numbers, rows, placed, strict=True)
    ]


def whole(one):
    """What the proxy says of the whole prompt at once, at its image tokens."""
    return read(one)[0]


def read(one):
    """What the proxy says of the whole prompt at once: relevance at its image tokens, and the signals."""
    image = torch.zeros(1, len(one.states), dtype=torch.bool)
    image[0, one.positions] = True
    reading = proxy().read(one.states[None], image, torch.ones_like(image))
    signals = {name: float(value) for name, value in reading.signals(image).items()}
    return torch.sigmoid(reading.relevance)[0, one.positions], signals


@st.composite
def traffic(draw):
    """(block size, prompts in shuffled blocks, the order in which their chunks are computed)."""
    block_size = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(2, 14), min_size=1, max_size=4))
    needed = [-(-size // block_size) for size in sizes]
    free = draw(st.permutations(range(sum(needed) + 2)))
    prompts, turns = [], []
    for number, (size, blocks) in enumerate(zip(sizes, needed, strict=True)):
        positions = draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(sorted))
        own, free = list(free[:blocks]), free[blocks:]
        one = placed(size, positions, own, draw(st.integers(0, 1000)))
        cuts = draw(st.lists(st.integers(1, size - 1), max_size=3, unique=True).map(sorted))
        one.waiting = np.split(np.arange(size), cuts)
        prompts.append(one)
        turns += [number] * len(one.waiting)
    return block_size, prompts, draw(st.permutations(turns)), draw(st.permutations(range(len(prompts) + 1)))


@NO_DEADLINE
@given(traffic())
def test_chunks_of_many_prompts_give_the_maps_of_whole_prompts(drawn):
    """Chunks of several prompts in any order and any blocks, scored together: each has the map it has alone."""
    block_size, prompts, turns, order = drawn
    buffer = buffer_of(sum(len(one.blocks) for one in prompts) + 2, block_size)
    for number in turns:
        one = prompts[number]
        one.write(buffer, block_size, one.waiting.pop(0))
    for one, (relevance, covered, signals) in zip(prompts, scored(buffer, prompts, order, spare_rows=1), strict=True):
        alone, own = read(one)
        torch.testing.assert_close(relevance, alone, rtol=0, atol=1e-5)
        assert set(signals) == {"grounding", "evidence"}
        assert signals == pytest.approx(own, abs=1e-5)
        assert covered == 1.0


@NO_DEADLINE
@given(traffic(), st.data())
def test_one_slot_of_another_prompt_is_enough_not_to_be_covered(drawn, data):
    """A prompt one of whose slots was given to another, or never written, is not covered; its neighbours are."""
    block_size, prompts, _, order = drawn
    buffer = buffer_of(sum(len(one.blocks) for one in prompts) + 2, block_size)
    robbed = data.draw(st.sampled_from(prompts))
    taken = data.draw(st.sampled_from(robbed.positions.tolist()))
    never_written = data.draw(st.booleans())
    for one in prompts:
        positions = np.arange(len(one.states))
        one.write(buffer, block_size, positions[positions != taken] if one is robbed and never_written else positions)
    if not never_written:
        block = robbed.blocks[taken // block_size]
        thief = placed(block_size, range(block_size), [block], 2000)
        thief.write(buffer, block_size, np.array([taken % block_size]))
    flags = [covered for _, covered, _ in scored(buffer, prompts, order, spare_rows=1)]
    assert flags == [float(one is not robbed) for one in prompts]


def test_blocks_of_a_gone_prompt():
    """Blocks that go from one prompt to another cover the new one only."""
    old, new = placed(8, range(1, 6), [2, 0], 0), placed(8, range(2, 7), [0, 2], 1)
    buffer = buffer_of(3, 4)
    old.write(buffer, 4)
    assert scored(buffer, [old])[0][1] == 1.0
    new.write(buffer, 4)
    (_, covered_old, _), (relevance, covered, _) = scored(buffer, [old, new])
    assert (covered_old, covered) == (0.0, 1.0)
    torch.testing.assert_close(relevance, whole(new), rtol=0, atol=1e-5)


def test_an_empty_buffer_covers_nobody():
    """Before anything is written no prompt is covered."""
    assert scored(buffer_of(2, 4), [placed(8, [1, 2], [0, 1], 0)])[0][1] == 0.0


def test_large_steps_are_worked_off_in_parts(monkeypatch):
    """Bounding the memory of a step changes no number: parts of rows and parts of prompts give the same maps."""
    prompts = [placed(12, range(1, 4 + 3 * n), [3 * n, 3 * n + 1, 3 * n + 2], n) for n in range(3)]
    calls = []
    match = slots.QueryRowProxy.match
    monkeypatch.setattr(slots, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(slots, "_NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(
        slots.QueryRowProxy, "match", lambda self, keys, *rest: calls.append(keys.numel()) or match(self, keys, *rest)
    )
    buffer = buffer_of(9, 4)
    for one in prompts:
        one.write(buffer, 4)
    found = scored(buffer, prompts)
    assert calls == [9 * KEY_SIZE] * 3
    for one, (relevance, covered, signals) in zip(prompts, found, strict=True):
        torch.testing.assert_close(relevance, whole(one), rtol=0, atol=1e-5)
        assert signals == pytest.approx(read(one)[1], abs=1e-5)
        assert covered == 1.0


def test_keys_in_16_bits():
    """Keys of a 16-bit model take 2 bytes a number and 8 a tag; the map moves by less than one in a hundred."""
    buffer = buffer_of(3, 4, torch.bfloat16)
    assert buffer.bytes == 12 * (2 * KEY_SIZE + 8)
    one = placed(12, range(2, 10), [1, 2, 0], 3)
    one.states = one.states.bfloat16()
    one.write(buffer, 4)
    ((relevance, covered, _),) = scored(buffer, [one])
    torch.testing.assert_close(relevance, whole(one), rtol=0, atol=0.01)
    assert (covered, relevance.dtype) == (1.0, torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    """On a GPU the maps are those of the CPU."""
    here, one = torch.device("cuda"), placed(12, range(2, 10), [1, 2, 0], 3)
    buffer = SlotKeys(
        tiny_scorer(width=WIDTH).folder.proxy.to(here), slots=12, block_size=4, dtype=torch.float32, device=here
    )
    rows, mapping = one.positions, one.slots(np.arange(12), 4).int().to(here)
    buffer.write(one.states.to(here), mapping, rows, one.tags)
    table = torch.tensor([[1, 2, 0]], dtype=torch.int32, device=here)
    numbers, _ = buffer.score(one.states.to(here), table, [Prompt(0, 11, one.positions, one.tags)], lambda last: {})
    torch.testing.assert_close(numbers[0].cpu(), torch.cat([whole(one), torch.ones(1)]), rtol=0, atol=1e-4)
