"""What an engine is asked to do, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

ALONE, AGAIN, WATCHED, HOOKED, EXTRACTED = "alone", "again", "watched", "hooked", "extracted"
TITLES = {
    ALONE: "vLLM alone",
    AGAIN: "vLLM alone, again",
    WATCHED: "vLLM + fastrm-monitor",
    HOOKED: "enforce_eager + norm hook",
    EXTRACTED: "extract_hidden_states",
}


@dataclass(frozen=True)
class Load:
    """One kind of traffic.

    Attributes:
        name: for the table.
        requests: of a round, all at once.
        pictures: they ask about.
        words: of each question.
        tokens: of each answer.
    """

    name: str
    requests: int
    pictures: int
    words: int
    tokens: int

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"{self.name}: {self.requests} requests, {self.pictures} pictures, {self.tokens} tokens out"


@dataclass(frozen=True)
class Setup:
    """What a child needs to start an engine; travels to it pickled."""

    variant: str
    model: str
    proxy: str
    store: str
    states: str
    kv_gib: int
    seats: int
    eager: bool
    memory_share: float | None
    threads: int | None
    loads: tuple[Load, ...]


@dataclass
class Round:
    """What one engine did with the requests of one round; times in seconds.

    Attributes:
        seconds: from the first request to the last answer.
        cpu: processor time of all the process's threads meanwhile.
        first: for each request the time from its arrival to its first token.
        steps: of the steps in which every request of the round decodes.
    """

    seconds: float
    cpu: float
    first: list[float]
    steps: list[float]


@dataclass
class Facts:
    """What an engine says about itself."""

    kv_bytes: int = 0
    kv_tokens: int = 0
    buffer_bytes: int = 0
    about: str = ""
    counters: dict[str, float] = field(default_factory=dict)
    seconds_to_start: float = 0.0
