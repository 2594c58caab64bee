"""Drift in the store: the rows of a window, and the reference that the random sample of stored answers makes.

The monitor's background thread writes the rows; `reference_of` is for whoever judged a time to be normal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select

from fastrm_monitor.drift.reference import SIZE, Reference, comparable
from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.errors import DataError
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.models import Case, DriftValue
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text


def add_drift(store: Store, server: str, model: str, found: Sequence[Drift], at: datetime | None = None) -> None:
    """Write what a window said, all or nothing.

    Args:
        store: where to.
        server: name of the process.
        model: name of the model.
        found: one `Drift` a feature.
        at: the end of the window; now when None.

    Raises:
        StoreError: the database failed; nothing was written.
    """
    if not found:
        return
    created_at = at or datetime.now(UTC)
    with store.session(write=True) as session:
        session.add_all(
            DriftValue(
                created_at=created_at,
                server=clean_text(server, 255),
                model=clean_text(model, 255),
                feature=clean_text(one.feature, 64),
                statistic=statistic,
                value=value,
                n_reference=one.n_reference,
                n_window=one.n_window,
            )
            for one in found
            for statistic, value in one.statistics().items()
        )


class DriftLog:
    """Writes windows to a store, oldest first; those that it does not take wait for the next one.

    Args:
        store: where to.
        keep: windows that may wait; older ones are forgotten.
    """

    def __init__(self, store: Store, keep: int = 144) -> None:
        self._store, self._keep = store, keep
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """A child writes what it saw itself."""
        self._waiting: deque[tuple[str, str, Sequence[Drift], datetime]] = deque(maxlen=self._keep)

    def add(self, server: str, model: str, found: Sequence[Drift], *, away: bool = False) -> None:
        """Take what a window said, and write all that waits unless the store is known to be away.

        Raises:
            StoreError: the database failed; what it lacks is written with the next window.
        """
        self._waiting.append((server, model, found, datetime.now(UTC)))
        while self._waiting and not away:
            add_drift(self._store, *self._waiting[0])
            self._waiting.popleft()


def reference_of(
    store: Store, model: str, *, since: datetime | None = None, until: datetime | None = None
) -> Reference:
    """The reference that a model's newest randomly sampled answers make, `SIZE` of them at most.

    Flagged answers that were not drawn are left out: they are the doubtful ones, not the traffic.

    Args:
        store: where the answers are.
        model: name of the model, as telemetry and records show it.
        since: the beginning of the time that counts as normal; all times when None.
        until: its end.

    Raises:
        DataError: there is no sampled answer of that model and time.
        StoreError: the database failed.
    """
    wanted = select(Case.features, Case.confidence, Case.calibrated, Case.proxy_version)
    wanted = wanted.where(Case.sampled, Case.model == model)
    if since is not None:
        wanted = wanted.where(Case.created_at >= since)
    if until is not None:
        wanted = wanted.where(Case.created_at < until)
    with store.session() as session:
        cases = session.execute(wanted.order_by(Case.created_at.desc()).limit(SIZE)).all()
    if not cases:
        raise DataError(
            f"The store {store.safe_url} has no sampled answer of {model!r} in that time: check the name, or serve "
            "with FASTRM_SAMPLE_RATE above 0."
        )
    version = cases[0].proxy_version  # features of another proxy are other numbers
    return Reference.of(
        (
            case.features if case.confidence is None else comparable(case.features, case.confidence, case.calibrated)
            for case in cases
            if case.proxy_version == version
        ),
        version,
    )
