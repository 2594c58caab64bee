"""A monitored server of drawn scenes for benchmarks: answers whose truth is known, labels by script, policies.

The embedded model answers behind transformers, watched by its shipped proxy; every answer is stored. Knows nothing of
what is measured with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from sqlalchemy import func, select

from fastrm_monitor.calibration.answers import Answers, from_store
from fastrm_monitor.calibration.choice import Outcome, calibrate, random_part
from fastrm_monitor.calibration.thresholds import least_risk
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.drift.reference import SIZE, comparable
from fastrm_monitor.drift.watch import DriftWatch
from fastrm_monitor.integrations.hf import Request, instrument
from fastrm_monitor.lab.ask import EMBEDDED, Asker, load_lvlm
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.records.models import Case, DriftValue
from fastrm_monitor.records.store import Store

MODEL = "embedded-llava"
BATCH = 32


@dataclass(frozen=True, eq=False)
class Served:
    """S answers, those about one picture behind each other.

    Attributes:
        picture: S ids.
        score: float (S,), before any recalibration.
        shown: float (S,), the confidence that they were served with.
        right: (S,), 1 or 0, by the scenes' truth.
        flagged: bool (S,).
        rows: what drift compares, of each.
        policies: versions that decided; None for the proxy folder's threshold.
    """

    picture: np.ndarray
    score: np.ndarray
    shown: np.ndarray
    right: np.ndarray
    flagged: np.ndarray
    rows: Sequence[Mapping[str, float]]
    policies: frozenset[int | None]

    def __len__(self) -> int:
        return len(self.score)

    def __add__(self, other: Served) -> Served:
        columns = ("picture", "score", "shown", "right", "flagged")
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns}
        return Served(**joined, rows=[*self.rows, *other.rows], policies=self.policies | other.policies)

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Row numbers of each picture."""
        first = np.flatnonzero(np.r_[True, self.picture[1:] != self.picture[:-1]])
        return np.split(np.arange(len(self)), first[1:])

    def draw(
        self, answers: int, rng: np.random.Generator, questions: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of pictures drawn with replacement, about that many answers, and new ids of these pictures.

        Args:
            answers: wanted.
            rng: draws.
            questions: most of a picture, drawn too; all when None.
        """
        rows: list[np.ndarray] = []
        count = 0
        while count < answers:
            own = self.groups[rng.integers(len(self.groups))]
            rows.append(own if questions is None else rng.permutation(own)[:questions])
            count += len(rows[-1])
        return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(one) for one in rows]).astype(str)


class Server:
    """The embedded model behind transformers, monitored, with a store; drift is looked at every `window` answers.

    Args:
        url: of the store.
        window: answers in the reference, the first ones, and in a window.
    """

    def __init__(self, url: str, window: int = SIZE) -> None:
        self._model, self._processor = load_lvlm(EMBEDDED, "cpu")
        self._asker = Asker(self._model, self._processor)
        self._store = Store(url)
        self.truth: dict[str, bool] = {}  # by case, of those not labelled yet
        self.handle = instrument(
            self._model,
            self._processor,
            proxy=PROXY_FOLDER,
            store=url,
            model_name=MODEL,
            sample_rate=1.0,
            policy_seconds=0.1,
        )
        # A window lasts ten minutes, and nobody waits that long here.
        version = self.handle.monitor.scorer.folder.version
        self.handle.monitor._drift = DriftWatch(proxy_version=version, size=window, minimum=window, period=0)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.remove()
        self._store.close()

    def serve(self, data: SceneSet, samples: Sequence[Sample]) -> Served:
        """Answer these questions, one batch after the other, and wait until they are stored; drift begins a window."""
        self.handle.monitor._drift.after_fork()
        table: list[tuple[str, float, float, bool, bool]] = []
        rows, policies = [], set()
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            pictures = [sample.picture() for sample in part]
            inputs = self._asker.inputs(pictures, [sample.question for sample in part])
            with self.handle.requests(
                [Request(one.id, one.question, (picture,)) for one, picture in zip(part, pictures, strict=True)]
            ):
                tokens = self._model.generate(**inputs, max_new_tokens=4, do_sample=False)
            texts = self._processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for sample, text, found in zip(part, texts, self.handle.pop(), strict=True):
                if found.confidence is None or found.case_id is None:
                    raise SystemExit(f"{sample.id} was not scored or not stored: {found.reason}.")
                numbers = comparable(found.features, found.confidence, found.calibrated)
                right = data.right(sample, text)
                table.append((sample.picture_id, numbers["confidence"], found.confidence, right, found.flagged))
                rows.append(numbers)
                policies.add(found.policy)
                self.truth[found.case_id] = right
        if not self.handle.flush(60):
            raise SystemExit("The store did not take the answers within a minute.")
        picture, score, shown, right, flagged = (np.array(column) for column in zip(*table, strict=True))
        return Served(picture, score, shown, right.astype(float), flagged, rows, frozenset(policies))

    def label(self) -> int:
        """Review every case that was served since the last time, by the scenes' truth; how many."""
        for case_id, right in self.truth.items():
            self._store.review(case_id, "correct" if right else "wrong", "script")
        count = len(self.truth)
        self.truth.clear()
        return count

    def calibrate(self, risk: float, confidence: float) -> tuple[Answers, Outcome, int]:
        """The store's answers, what was chosen, and the version that it was published as."""
        answers = from_store(self._store, model=MODEL)
        outcome = calibrate(answers, "risk", risk, confidence)
        return answers, outcome, outcome.publish(self._store, "script")

    def least_risk(self, confidence: float) -> float:
        """The least risk that can be shown with the store's labels, in tenths of a percent."""
        part = random_part(from_store(self._store, model=MODEL))
        return math.ceil(1000 * least_risk(part.score, part.right, confidence, part.picture)) / 1000

    def take_over(self, version: int, data: SceneSet, samples: Sequence[Sample], seconds: float = 30) -> int:
        """Serve batches of these questions until a policy is in force; how many answers were served meanwhile."""
        until, count = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            served = self.serve(data, samples[:8])
            if served.policies == {version}:
                return count
            count += len(served)
            time.sleep(0.1)
        raise SystemExit(f"The running server did not take policy {version} over within {seconds} seconds.")

    def windows(self) -> list[dict[str, float]]:
        """Corrected p value by feature of each window of drift in the store, the oldest first."""
        wanted = select(DriftValue).where(DriftValue.statistic == "ks_p").order_by(DriftValue.id)
        found: dict[Any, dict[str, float]] = {}
        with self._store.session() as session:
            for one in session.scalars(wanted):
                found.setdefault(one.created_at, {})[one.feature] = one.value
        return list(found.values())

    @property
    def threshold(self) -> float:
        """Of the proxy folder."""
        return self.handle.monitor.policy.threshold or 0.0

    @property
    def failed(self) -> int:
        """Stages that failed, as the monitor counts them."""
        counts = self.handle.monitor.counters.snapshot()
        return int(sum(n for (name, _), n in counts.items() if name == "failed"))

    def stored(self, policy: int) -> int:
        """Cases in the store that a policy decided."""
        with self._store.session() as session:
            return session.scalar(select(func.count()).where(Case.policy == policy)) or 0


def parts(data: SceneSet, *pictures: int) -> Iterator[list[Sample]]:
    """The questions about the first pictures, about the next ones, and so on."""
    samples = list(data)
    order = {name: place for place, name in enumerate(dict.fromkeys(one.picture_id for one in samples))}
    for low, high in pairwise(np.cumsum([0, *pictures]).tolist()):
        yield [one for one in samples if low <= order[one.picture_id] < high]
