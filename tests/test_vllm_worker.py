"""What the worker finds out, step by step, beside an engine that cuts, caches, preempts and mixes requests."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from fastrm_monitor.errors import ProxyError
from fastrm_monitor.integrations.vllm.slots import SlotKeys
from fastrm_monitor.integrations.vllm.worker import Batch, Finding, NewPrompt, Step, WorkerMonitor
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.tokens import Scratch
from tests.tiny import tiny_scorer

WIDTH, BLOCK, TABLE_ROWS, WORDS = 8, 4, 6, 11
IMAGE = 4
"""The image token."""
PROBE = LogisticConfidence(
    ("p_ik",), (0.0,), (1.0,), (2.0,), 0.5, threshold=0.5, probe=tuple(0.1 * n for n in range(WIDTH)), probe_bias=-0.25
)


# --- an engine --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Asked:
    """A request: tokens, and for each picture its positions and hash."""

    name: str
    tokens: list[int]
    pictures: list[tuple[np.ndarray, str]] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    table_row: int | None = None
    computed: int = 0  # rows computed since it was last admitted or taken from the cache
    ended: bool = False  # its prompt has once been computed to its end

    def prefix(self, end):
        """What the states of the first `end` tokens hang on."""
        seen = [(int(places[0]), identity) for places, identity in self.pictures if (places < end).any()]
        return repr((self.tokens[:end], seen))

    def state(self, position):
        """The model's state of a token: another one after another prefix."""
        seed = list(self.prefix(position + 1).encode()) if position < len(self.tokens) else [position]
        return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def asked(name, *parts):
    """A request from parts: an int is so many words, a string is a picture of five patches."""
    tokens, pictures = [1], []
    for part in parts:
        if isinstance(part, str):
            pictures.append((np.arange(5) + len(tokens), part))
            tokens += [IMAGE] * 5
        else:
            tokens += [10 + n for n in range(part)]
    return Asked(name, tokens, pictures)


class Engine:
    """Blocks, a prefix cache and a block table as vLLM has them, around a `WorkerMonitor`."""

    def __init__(self, blocks=40, dtype=torch.float32, scorer=None):
        self.scorer = scorer or tiny_scorer(PROBE, width=WIDTH)
        self.keys = SlotKeys(
            WorkerMonitor.query_row(self.scorer),
            slots=blocks * BLOCK,
            block_size=BLOCK,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        self.monitor = WorkerMonitor(self.scorer, self.keys, IMAGE, "engine 1")
        self.table = torch.full((TABLE_ROWS, 12), -1, dtype=torch.int32)
        self.gone, self.hits = [], 0
        self._free, self._users = deque(range(blocks)), Counter()
        self._cached = {}  # prefix -> block
        self._rows = list(range(TABLE_ROWS))[::-1]
        self._padding = 0

    def step(self, *chunks, bend=None, logits=None, tokens=None):
        """Compute at most so many rows of each request, None for all; returns the step's sheet.

        A prompt that is computed to its end goes on token by token.
        """
        new = [one for one, _ in chunks if one.table_row is None]
        rows = []
        for one, most in chunks:
            if one in new:
                one.table_row = self._rows.pop()
                self._take_cached(one)
            left = len(one.tokens) - one.computed
            end = one.computed + (min(most or left, left) if left > 0 else 1)
            self._allocate(one, end)
            rows.append((one, one.computed, end))
        self.monitor.admit([NewPrompt(one.name, np.array(one.tokens), one.pictures) for one in new], self.gone)
        self.gone = []
        batch = self._batch(rows)
        step = self.monitor.read(bend(batch) if bend else batch)
        if logits is not None:
            step.before_sampling(logits)
            step.after_sampling(tokens)
        for one, _, end in rows:
            one.computed, one.ended = end, one.ended or end >= len(one.tokens)
        step.send(*self.monitor.news())
        return step.collect()

    def preempt(self, one):
        """Take a request's blocks away; it has to come again."""
        self._release(one)

    def finish(self, one):
        self._release(one)
        self.gone.append(one.name)

    def fill_without_computing(self, one):
        """The blocks of a prompt come from elsewhere, as a KV connector has them."""
        one.table_row = self._rows.pop()
        self._allocate(one, len(one.tokens))
        self._release(one)

    def forget_cached(self):
        """What the cache holds of nobody's requests is given up."""
        self._cached = {prefix: block for prefix, block in self._cached.items() if block not in self._free}

    def _take_cached(self, one):
        for end in range(BLOCK, len(one.tokens), BLOCK):  # the last token is computed in any case
            block = self._cached.get(one.prefix(end))
            if block is None:
                break
            if block in self._free:
                self._free.remove(block)
            one.blocks.append(block)
            self._users[block] += 1
            one.computed = end
            self.hits += 1

    def _allocate(self, one, end):
        while len(one.blocks) * BLOCK < end:
            block = self._free.popleft()
            self._cached = {prefix: other for prefix, other in self._cached.items() if other != block}
            self._users[block] += 1
            one.blocks.append(block)
        for number in range(min(end, len(one.tokens)) // BLOCK):
            self._cached.setdefault(one.prefix((number + 1) * BLOCK), one.blocks[number])
        self.table[one.table_row] = -1
        self.table[one.table_row, : len(one.blocks)] = torch.tensor(one.blocks, dtype=torch.int32)

    def _release(self, one):
        for block in one.blocks:
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)
        self._rows.append(one.table_row)
        one.blocks, one.table_row, one.computed = [], None, 0

    def _batch(self, rows):
        self._padding = (self._padding + 1) % 3
        states = [one.state(place) for one, first, end in rows for place in range(first, end)]
        slots = [
            one.blocks[place // BLOCK] * BLOCK + place % BLOCK
            for one, first, end in rows
            for place in range(first, end)
        ]
        return Batch(
            request_ids=[one.name for one, _, _ in rows],
            first=np.array([first for _, first, _ in rows], np.int32),
            starts=np.cumsum([0] + [end - first for _, first, end in rows]).astype(np.int32),
            table_rows=np.array([one.table_row for one, _, _ in rows], np.int32),
            states=torch.from_numpy(np.array(states + [np.full(WIDTH, np.nan, np.float32)] * self._padding)),
            slot_mapping=torch.tensor(slots + [-1] * self._padding),
            block_table=self.table,
        )

    def check(self, one, finding, atol=1e-5):
        """The finding is that of the whole prompt, scored at once on the road that exists."""
        states = torch.from_numpy(np.array([one.state(place) for place in range(len(one.tokens))]))
        image = torch.tensor([token == IMAGE for token in one.tokens])
        ((relevance, signals),) = self.scorer.measure(states[None], image[None], torch.ones_like(image)[None]).rows()
        assert finding.reason is None, f"{one.name} has no map: {finding.reason}"
        assert np.frombuffer(finding.relevance, np.float32) == pytest.approx(relevance, abs=atol)
        assert finding.signals == pytest.approx(signals, abs=atol)


# --- maps -------------------------------------------------------------------------------------------------------------


def test_a_prompt_in_one_step():
    """A prompt computed at once has the map and signals of `Scorer.measure`, and is told of once."""
    engine, one = Engine(), asked("a", 3, "cat", 4)
    sheet = engine.step((one, None))
    assert list(sheet.findings) == ["a"]
    engine.check(one, sheet.findings["a"])
    assert set(sheet.findings["a"].signals) == {"p_ik", "grounding", "evidence"}
    assert engine.step((one, 1)).findings == {}


def test_without_a_probe():
    """A proxy folder without a probe gives maps without P(IK)."""
    engine, one = Engine(scorer=tiny_scorer(width=WIDTH)), asked("a", 3, "cat", 4)
    finding = engine.step((one, None)).findings["a"]
    assert "p_ik" not in finding.signals
    engine.check(one, finding)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_chunks_of_any_size(size):
    """A prompt with two pictures in chunks, cut inside pictures too, has its map at the step that ends it."""
    engine, one = Engine(), asked("a", 2, "cat", 3, "dog", 1)
    while not one.ended:
        sheet = engine.step((one, size))
        assert bool(sheet.findings) == one.ended
    engine.check(one, sheet.findings["a"])


def test_a_picture_that_ends_the_prompt():
    """The last row may be a patch itself."""
    engine, one = Engine(), asked("a", 2, "cat")
    engine.check(one, engine.step((one, None)).findings["a"])


def test_a_prefix_from_the_cache():
    """A prompt whose picture another request has brought is scored from that one's keys, though no row of it came."""
    engine, first, second = Engine(), asked("a", 2, "cat", 4, "dog"), asked("b", 2, "cat", 9)
    engine.step((first, None))
    engine.finish(first)
    sheet = engine.step((second, None))
    assert engine.hits == 3
    engine.check(second, sheet.findings["b"])


def test_a_prefix_of_the_same_step():
    """A prompt may share the blocks of one that is computed in the same step, whatever their order in the batch."""
    engine, first, second = Engine(), asked("a", 2, "cat", 4), asked("b", 2, "cat", 9)

    def turned(batch):
        (_, end, last), first = batch.starts.tolist(), batch.first
        order = [*range(end, last), *range(end)]
        return replace(
            batch,
            request_ids=batch.request_ids[::-1],
            first=first[::-1],
            starts=np.array([0, last - end, last]),
            table_rows=batch.table_rows[::-1],
            states=batch.states[order],
            slot_mapping=batch.slot_mapping[order],
        )

    findings = engine.step((first, None), (second, None), bend=turned).findings
    assert second.blocks[:2] == first.blocks[:2]
    engine.check(first, findings["a"])
    engine.check(second, findings["b"])


def test_an_equal_prompt_with_another_picture():
    """The same words with another picture share no keys; each has its own map."""
    engine, first, second = Engine(), asked("a", 2, "cat", 4), asked("b", 2, "dog", 4)
    findings = engine.step((first, None), (second, None)).findings
    engine.check(first, findings["a"])
    engine.check(second, findings["b"])
    assert findings["a"].relevance != findings["b"].relevance


def test_blocks_that_were_filled_without_the_model():
    """A prefix that no forward pass of this worker computed has no keys: that is said, and no map is made up."""
    engine, first, second = Engine(), asked("a", 2, "cat", 4), asked("b", 2, "cat", 9)
    engine.fill_without_computing(first)
    assert engine.step((second, None)).findings == {"b": Finding(reason="keys_missing")}


def test_preempted_before_its_end():
    """A request that loses its blocks in mid prompt and comes again in others has the map of the whole prompt."""
    engine, one = Engine(), asked("a", 2, "cat", 9)
    engine.step((one, 6))
    before = one.blocks
    engine.preempt(one)
    engine.forget_cached()
    engine.step((one, 3))
    assert (one.computed, set(one.blocks) & set(before)) == (3, set())
    engine.check(one, engine.step((one, None)).findings["a"])


def test_preempted_after_its_end():
    """A request that was told of and is computed again is not told of again, and its new blocks serve others."""
    engine, one = Engine(), asked("a", 2, "cat", 9)
    engine.check(one, engine.step((one, None)).findings["a"])
    engine.preempt(one)
    engine.forget_cached()
    assert engine.step((one, None)).findings == {}
    second = asked("b", 2, "cat", 1)
    sheet = engine.step((second, None), (one, 1))
    assert second.blocks[:2] == one.blocks[:2]
    engine.check(second, sheet.findings["b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_traffic(seed, dtype):
    """Random hits, chunks, preemptions and reused blocks: one map for each prompt with pictures, and the right one."""
    rng = np.random.default_rng(seed)
    engine = Engine(blocks=32, dtype=dtype)
    waiting = [random_request(rng, f"r{number}") for number in range(24)]
    running, told = [], Counter()
    while waiting or running:
        if running and rng.random() < 0.15:
            waiting.insert(0, running.pop(int(rng.integers(len(running)))))
            engine.preempt(waiting[0])
            if rng.random() < 0.5:
                engine.forget_cached()
        while waiting and len(running) < 4 and rng.random() < 0.7:
            running.append(waiting.pop(0))
        rng.shuffle(running)
        chunks = [(one, int(rng.integers(1, 9))) for one in running if one.table_row is None or rng.random() < 0.8]
        unended = {one.name: one for one, _ in chunks if one.pictures and not one.ended}
        sheet = engine.step(*chunks)
        assert sheet.findings.keys() == {name for name, one in unended.items() if one.ended}
        assert sheet.failed == {}
        for name, finding in sheet.findings.items():
            told[name] += 1
            engine.check(unended[name], finding, atol=1e-5 if dtype == torch.float32 else 0.02)
        for one in [one for one in running if one.ended and rng.random() < 0.3]:
            running.remove(one)
            engine.finish(one)
    assert len(told) > 8
    assert set(told.values()) == {1}
    assert engine.hits > 5


def random_request(rng, name):
    """Text only, or with one or two of two pictures; beginnings are often shared."""
    parts = [int(rng.integers(0, 2))]
    for _ in range(int(rng.integers(0, 3))):
        parts += [str(rng.choice(["cat", "dog"])), int(rng.integers(0, 5))]
    return asked(name, *parts, int(rng.integers(1, 4)))


# --- requests that are not scored -------------------------------------------------------------------------------------


def test_text_only_traffic():
    """Of requests without pictures there is nothing to send, after the one line about the worker."""
    engine = Engine()
    engine.monitor.news()
    step = engine.monitor.read(replace(one_row(), request_ids=["text"]))
    assert not step.send(*engine.monitor.news())
    sheet = engine.step(
        (asked("a", 5), None), (asked("b", 9), 3), logits=torch.zeros(2, WORDS), tokens=torch.ones(2, 1)
    )
    assert (sheet.findings, sheet.failed, len(sheet.rows), sheet.numbers.shape) == ({}, {}, 0, (0, 2))


def one_row():
    """A step of one request of one row."""
    return Batch(
        request_ids=["a"],
        first=np.array([0]),
        starts=np.array([0, 1]),
        table_rows=np.array([0]),
        states=torch.zeros(1, WIDTH),
        slot_mapping=torch.zeros(1),
        block_table=torch.zeros(1, 1),
    )


def test_prompts_that_came_as_embeddings():
    """A prompt without tokens cannot be told from others: its reason goes out with the next step."""
    engine = Engine()
    engine.monitor.admit([NewPrompt("e", None, [(np.arange(3), "cat")]), NewPrompt("t", None, ())], [])
    sheet = engine.step((asked("a", 3), None))
    assert sheet.findings == {"e": Finding(reason="prompt_embeds")}
    assert engine.step((asked("b", 3), None)).findings == {}


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]])
def test_pictures_that_are_not_at_image_tokens(positions, caplog):
    """An engine whose picture positions are not the image tokens', or not in the prompt, gets no map from then on."""
    engine, wrong = Engine(), asked("w", 2, "cat", 1)
    wrong.pictures = [(np.array(positions), "cat")]
    assert engine.step((asked("a", 2, "dog", 1), None)).findings["a"].reason is None
    for name, one in (("w", wrong), ("b", asked("b", 2, "cat", 1))):
        assert engine.step((one, None)).findings == {name: Finding(reason="layout_mismatch")}
    assert [one.message for one in caplog.records if "unscored from here on" in one.message] == caplog.messages
    assert len(caplog.messages) == 1


INCONSISTENT = {
    "more rows than states": lambda batch: {"states": batch.states[:5]},
    "more rows than slots": lambda batch: {"slot_mapping": batch.slot_mapping[:5]},
    "a request without rows": lambda batch: {"starts": np.array([0, 0, batch.starts[-1]])},
    "rows that go backwards": lambda batch: {"starts": batch.starts[::-1]},
    "a request without a first row": lambda batch: {"first": batch.first[:1]},
    "a request without a table row": lambda batch: {"table_rows": batch.table_rows[:1]},
    "a request without an end": lambda batch: {"starts": batch.starts[:2]},
    "no starts": lambda batch: {"starts": batch.starts[:0]},
    "more starts than requests": lambda batch: {"starts": np.array([*batch.starts, batch.starts[-1] + 1])},
}


@pytest.mark.parametrize("kind", INCONSISTENT)
def test_rows_that_are_not_laid_out_as_expected(kind, caplog):
    """A step that cannot be what the engine says switches scoring off, once and for all; nothing is raised."""
    engine = Engine()
    requests = asked("a", 2, "cat", 3), asked("b", 2, "dog", 3)
    caplog.set_level(logging.WARNING)
    sheet = engine.step(
        *((one, None) for one in requests), bend=lambda batch: replace(batch, **INCONSISTENT[kind](batch))
    )
    assert {finding.reason for finding in sheet.findings.values()} <= {"layout_mismatch"}
    for name in "cd":
        findings = engine.step((asked(name, 2, "cat", 1), None)).findings
        assert findings == {name: Finding(reason="layout_mismatch")}
    assert ["unscored from here on" in message for message in caplog.messages] == [True]


def test_self_attention_proxies_are_refused():
    """A proxy that needs every row at once is refused with the way to another."""
    with pytest.raises(ProxyError, match="--form query-row"):
        WorkerMonitor.query_row(tiny_scorer(form="self-attention"))


# --- failures ---------------------------------------------------------------------------------------------------------


def broken(*_args, **_kwargs):
    raise RuntimeError("out of memory")


def test_keys_that_cannot_be_written(monkeypatch):
    """A failure to keep keys is counted; the prompts that miss them say so, and later prompts are scored again."""
    engine, one, other = Engine(), asked("a", 2, "cat", 6), asked("b", 1)
    with monkeypatch.context() as patch:
        patch.setattr(engine.keys, "write", broken)
        sheet = engine.step((one, 6), (other, None))
        assert (sheet.findings, sheet.failed) == ({}, {"projection": 1})
    sheet = engine.step((one, None), (other, 1))
    assert (sheet.findings, sheet.failed) == ({"a": Finding(reason="keys_missing")}, {})
    later = asked("c", 3, "cat", 1)
    engine.check(later, engine.step((later, None)).findings["c"])


@pytest.mark.parametrize("part", ["keys.score", "scorer.probe"])
def test_prompts_that_cannot_be_scored(part, monkeypatch):
    """A failure to score is counted and is the reason of all prompts that end in the step; the next are scored."""
    engine, one, other = Engine(), asked("a", 2, "cat", 6), asked("b", 4, "dog", 1)
    owner, name = part.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(engine, owner), name, broken)
        sheet = engine.step((one, None), (other, None))
    assert sheet.findings == dict.fromkeys("ab", Finding(reason="scorer_error"))
    assert sheet.failed == {"score": 1}
    later = asked("c", 3, "cat", 1)
    sheet = engine.step((later, None))
    engine.check(later, sheet.findings["c"])
    assert sheet.failed == {}


def test_a_picture_without_tokens():
    """A request whose picture takes no token has no map, and costs its neighbour none."""
    engine, one, odd = Engine(), asked("a", 2, "cat", 6), asked("b", 6)
    odd.pictures = [(np.arange(0), "dog")]
    findings = engine.step((odd, None), (one, None)).findings
    engine.check(one, findings["a"])
    assert findings.get("b", Finding()).relevance is None


def test_requests_that_are_gone_are_forgotten():
    """A finished request leaves nothing behind, and its id may be used for another prompt."""
    engine, one, again = Engine(), asked("a", 2, "cat", 6), asked("a", 1, "dog", 6)
    engine.step((one, None))
    engine.finish(one)
    engine.check(again, engine.step((again, None)).findings["a"])


def test_news_is_told_once():
    """The line about the worker goes with the first sheet only."""
    engine, one = Engine(), asked("a", 2, "cat", 6)
    assert [engine.step((one, 4)).about for _ in range(3)] == ["engine 1", "", ""]


# --- token numbers ----------------------------------------------------------------------------------------------------


def step_of(*with_pictures):
    """A step whose batch has pictures in these places."""
    step = Step({}, Scratch())
    step.rows = list(with_pictures)
    return step


def measured(step):
    step.send({}, "")
    sheet = step.collect()
    return sheet.rows.tolist(), sheet.numbers


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [1, 3], [2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_chosen_tokens(places, dtype):
    """Log probability and entropy (nats) of the picture requests' tokens, though sampling spoils the logits."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, WORDS)) * 4).to(dtype)
    tokens, step, before = torch.tensor([[3], [0], [10], [7]], dtype=torch.int32), step_of(*places), logits.double()
    step.before_sampling(logits)
    logits.fill_(torch.nan)
    step.after_sampling(tokens)
    rows, numbers = measured(step)
    assert rows == places
    for place, (log_probability, own_entropy) in zip(places, numbers.tolist(), strict=True):
        expected = log_softmax(before[place].numpy())
        assert log_probability == pytest.approx(expected[int(tokens[place])], abs=1e-5)
        assert own_entropy == pytest.approx(entropy(np.exp(expected)), abs=1e-5)


def test_masked_logits():
    """Tokens that a grammar rules out (-inf) count nothing; one that is chosen all the same has a finite number."""
    logits = torch.full((3, WORDS), -torch.inf)
    logits[0, 2] = 5.0
    logits[1, [1, 4]] = 1.0
    logits[2, 0] = 0.0
    step = step_of(0, 1, 2)
    step.before_sampling(logits)
    step.after_sampling(torch.tensor([[2], [4], [9]]))
    _, numbers = measured(step)
    assert numbers[:2].tolist() == [pytest.approx([0, 0]), pytest.approx([-np.log(2), np.log(2)], abs=1e-6)]
    assert np.isfinite(numbers).all()
    assert numbers[2, 0] < -80


@pytest.mark.parametrize("tokens", [torch.ones(2, 3), torch.ones(2), torch.ones(1, 1)])
def test_several_tokens_a_step(tokens):
    """Tokens that are not one for each request (speculative decoding) have no numbers, and no other's."""
    step = step_of(0, 1)
    step.before_sampling(torch.zeros(2, WORDS))
    step.after_sampling(tokens.long())
    assert measured(step)[0] == []


def test_logits_of_fewer_requests():
    """A sampler that is called for a part of the batch is not read."""
    step = step_of(0, 2)
    step.before_sampling(torch.zeros(2, WORDS))
    step.after_sampling(torch.ones(3, 1).long())
    assert measured(step)[0] == []


def test_numbers_go_with_the_steps_own_requests():
    """In a mixed batch the numbers are those of the picture requests' places, before and after their prompts' ends."""
    engine, one, other, text = Engine(), asked("a", 2, "cat", 6), asked("b", 1, "dog", 1), asked("t", 3)
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(3, WORDS)))
    sheet = engine.step((text, None), (one, 4), (other, None), logits=logits, tokens=torch.tensor([[1], [2], [3]]))
    assert sheet.rows.tolist() == [1, 2]
    assert sheet.numbers[:, 0] == pytest.approx([log_softmax(logits[k].numpy())[k + 1] for k in (1, 2)], abs=1e-5)
    sheet = engine.step((other, 1), (text, 1), (one, None), logits=logits, tokens=torch.tensor([[1], [2], [3]]))
    assert sheet.rows.tolist() == [0, 2]
