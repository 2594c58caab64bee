"""Several scores on the same answers: each with its interval, and ours against each of the others.

Pooled over families of questions an AUROC mostly measures which family is hard, so everything stands within families
too: the mean over families, weighted by their pairs of a right and a wrong answer. All scores share the draws of the
bootstrap, which pairs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.intervals import LEAST, Draws, holm, interval, rate, significance
from fastrm_monitor.lab.reliability import (
    PROBABILITIES,
    aurc,
    auroc,
    brier,
    calibration_error,
    oriented,
    prr,
    spearman,
)


class Answers:
    """Answers whose truth is known.

    Args:
        right: of each of S answers.
        groups: its family of questions.
        pictures: its picture's id.
        seed: of the draws, see `Draws`.
    """

    def __init__(self, right: Sequence[bool], groups: Sequence[str], pictures: Sequence[str], seed: int = 0) -> None:
        self.right, self.groups = np.asarray(right, bool), np.asarray(groups, str)
        self.families = sorted(set(groups))
        self.draws = Draws(pictures, seed=seed)

    def __len__(self) -> int:
        return len(self.right)

    def conclusive(self, rows: np.ndarray) -> bool:
        """Whether these row numbers hold right answers, wrong answers and pictures enough to judge a ranking."""
        right = int(self.right[rows].sum())
        return min(right, len(rows) - right) >= LEAST and self.draws.enough_of(rows)


def accuracy(answers: Answers) -> dict[str, Any]:
    """Share of right answers with its interval over pictures: `all` and `by_group`."""
    right = answers.right.astype(float)
    return {
        "all": rate(right, answers.draws),
        "by_group": {kind: rate(right, answers.draws, answers.groups == kind) for kind in answers.families},
    }


class Comparison:
    """The scores of one data set held against the truth.

    Args:
        scores: raw values (S,) by name; NaN where a score does not know an answer.
        answers: the truth of the S answers.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]], answers: Answers) -> None:
        self._answers = answers
        self._values = {name: oriented(name, np.asarray(raw, float)) for name, raw in scores.items()}
        self._known = {name: np.isfinite(values) for name, values in self._values.items()}
        self._made: dict[tuple[str, bytes], _Ranking] = {}

    def draws(self, name: str) -> np.ndarray:
        """The AUROC of a score in each draw, (B,)."""
        return self._ranking(name, self._known[name]).drawn

    def judge(self) -> dict[str, Any]:
        """Each score by name; see docs/evaluate.md.

        `p` tests whether the AUROC is 1/2, which is whether the rank correlation is 0; `p_holm` is corrected for the
        number of scores of this data set.
        """
        judged = {name: self._judge(name) for name in self._values if self._known[name].any()}
        corrected = holm([own["p"] for own in judged.values()])
        for own, value in zip(judged.values(), corrected, strict=True):
            own["p_holm"] = value
        return judged

    def differences(self, ours: str = "fastrm") -> dict[str, Any]:
        """AUROC of `ours` minus that of each other score, paired on the answers that both know.

        `p` tests whether the difference is 0; `p_holm` is corrected for the number of others.
        """
        others = [name for name in self._values if name != ours and (self._known[name] & self._known[ours]).any()]
        found = {name: self._difference(ours, name) for name in others}
        corrected = holm([own["p"] for own in found.values()])
        for own, value in zip(found.values(), corrected, strict=True):
            own["p_holm"] = value
        return found

    def _ranking(self, name: str, where: np.ndarray) -> _Ranking:
        key = name, where.tobytes()
        if key not in self._made:
            self._made[key] = _Ranking(self._values[name], self._answers, np.flatnonzero(where))
        return self._made[key]

    def _judge(self, name: str) -> dict[str, Any]:
        where = self._known[name]
        values, right = self._values[name][where], self._answers.right[where]
        ranking = self._ranking(name, where)
        own: dict[str, Any] = {
            "n": len(right),
            "wrong": int((~right).sum()),
            "conclusive": ranking.conclusive,
            "auroc": _number(ranking.auroc),
            "auroc_ci95": interval(ranking.drawn),
            "within": {"auroc": _number(ranking.within), "ci95": interval(ranking.drawn_within)},
            "aurc": _number(aurc(values, right)),
            "prr": _number(prr(values, right)),
            "spearman": _number(spearman(values, right)),
            "p": significance(ranking.drawn, 0.5),
        }
        if name in PROBABILITIES:
            own["ece"], own["brier"] = calibration_error(values, right), brier(values, right)
        own["by_group"] = {
            kind: {
                "n": family.n,
                "wrong": family.wrong,
                "conclusive": family.conclusive,
                "auroc": _number(family.auroc),
                "auroc_ci95": interval(family.drawn),
            }
            for kind, family in ranking.families.items()
        }
        return own

    def _difference(self, ours: str, other: str) -> dict[str, Any]:
        where = self._known[ours] & self._known[other]
        one, two = self._ranking(ours, where), self._ranking(other, where)
        apart = one.drawn - two.drawn
        return {
            "n": int(where.sum()),
            "difference": _number(one.auroc - two.auroc),
            "ci95": interval(apart),
            "p": significance(apart),
            "within": {
                "difference": _number(one.within - two.within),
                "ci95": interval(one.drawn_within - two.drawn_within),
            },
            "by_group": {
                kind: {
                    "difference": _number(own.auroc - two.families[kind].auroc),
                    "ci95": interval(own.drawn - two.families[kind].drawn),
                }
                for kind, own in one.families.items()
            },
        }


class _Family:
    """How often a right answer of some rows scores above a wrong one: in fact, and in each draw."""

    def __init__(self, values: np.ndarray, answers: Answers, rows: np.ndarray) -> None:
        right = answers.right[rows]
        self.rows, self.n, self.wrong = rows, len(rows), int((~right).sum())
        self.pairs = self.wrong * (self.n - self.wrong)
        self.auroc = auroc(values[rows], right)
        self.conclusive = answers.conclusive(rows)
        self.wins = self.auroc * self.pairs if self.pairs else 0.0
        drawn = _drawn(values, answers, rows) if self.pairs else (np.zeros(0), np.zeros(0))
        self.drawn_wins: np.ndarray = drawn[0]
        self.drawn_pairs: np.ndarray = drawn[1]

    @property
    def drawn(self) -> np.ndarray:
        """AUROC in each draw, (B,); one NaN when there is too little to conclude from."""
        return _share(self.drawn_wins, self.drawn_pairs) if self.conclusive else np.full(1, np.nan)


class _Ranking(_Family):
    """The same of all rows, and within their families."""

    def __init__(self, values: np.ndarray, answers: Answers, rows: np.ndarray) -> None:
        super().__init__(values, answers, rows)
        kinds = answers.groups[rows]
        self.families = {
            kind: _Family(values, answers, rows[kinds == kind]) for kind in answers.families if (kinds == kind).any()
        }
        mixed = [family for family in self.families.values() if family.pairs]
        pairs = sum(family.pairs for family in mixed)
        self.within = sum(family.wins for family in mixed) / pairs if pairs else float("nan")
        self.drawn_within = np.full(1, np.nan)
        if mixed and answers.conclusive(np.concatenate([family.rows for family in mixed])):
            sums = [sum(part) for part in zip(*((one.drawn_wins, one.drawn_pairs) for one in mixed), strict=True)]
            self.drawn_within = _share(np.asarray(sums[0]), np.asarray(sums[1]))


def _drawn(values: np.ndarray, answers: Answers, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a right and a wrong answer that are ranked so, ties counting half, and all pairs, in each draw (B,)."""
    ordered = rows[np.argsort(values[rows], kind="stable")]
    _, ties = np.unique(values[ordered], return_index=True)
    right = answers.right[ordered]
    wins, pairs = [], []
    for weights in answers.draws.weights(ordered):  # (b, rows)
        good = np.add.reduceat(np.where(right, weights, 0), ties, axis=1)  # (b, values)
        bad = np.add.reduceat(np.where(right, 0, weights), ties, axis=1)
        below = np.cumsum(bad, axis=1)
        wins.append(np.einsum("bv,bv->b", good, below - bad / 2))
        pairs.append(good.sum(1) * below[:, -1])
    return np.concatenate(wins), np.concatenate(pairs)


def _share(wins: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        found: np.ndarray = wins / pairs  # NaN in a draw without both kinds
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
