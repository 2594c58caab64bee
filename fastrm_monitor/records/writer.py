"""A bounded queue and the background thread that empties it, so that telemetry and storage never delay an answer.

The monitor puts answers in and says how a batch is delivered. Knows nothing of answers, databases or telemetry.
The bound counts what is queued; the batch in delivery comes on top.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakSet, ref

from fastrm_monitor.guard import log_once, logger
from fastrm_monitor.records.forks import renew_in_child

T = TypeVar("T")

_IDLE_SECONDS = 1.0


class Writer(Generic[T]):
    """Delivers items in order on a daemon thread, which starts at the first `put`.

    When the process forks, the parent delivers what it had queued; the child begins empty, with a thread of its own.
    When the process ends, what is queued is delivered for at most `flush_seconds`.

    Args:
        deliver: takes a batch in order; does its own retries. When it raises, the batch is dropped as "store_error".
        size: items that may be queued.
        flush_seconds: longest wait of `close` and of the end of the process.
        dropped: told of every item that is lost, and why: "queue_full", "store_error" or "shutdown".
        batch: most items in one delivery.
        idle: called after each batch and about once a second while the thread lives, and once before it ends.
    """

    def __init__(
        self,
        deliver: Callable[[list[T]], None],
        *,
        size: int,
        flush_seconds: float,
        dropped: Callable[[T, str], None],
        batch: int = 64,
        idle: Callable[[], None] | None = None,
    ) -> None:
        self._deliver, self._dropped, self._idle = deliver, dropped, idle
        self._size, self._batch, self._flush_seconds = size, batch, flush_seconds
        self._closed = False
        self.after_fork()
        renew_in_child(self)
        _writers.add(self)

    def after_fork(self) -> None:
        """Begin empty: what the parent had queued is the parent's."""
        self._changed = threading.Condition()
        self._queue: OrderedDict[int, T] = OrderedDict()  # serial number -> item
        self._droppable: deque[int] = deque()  # serial numbers of the queued items that need not be kept
        self._serial = 0  # of the next item
        self._in_delivery = 0  # items
        self._delivery_from = 0  # serial number of the first of them
        self._thread: threading.Thread | None = None
        # The thread knows its writer by a weak reference, so that an abandoned writer goes away with its thread.
        # The pin is the strong one, and it is there exactly as long as there is something to do.
        self._pin: list[Writer[T]] = []

    def put(self, item: T, keep: bool) -> None:
        """Queue an item; never blocks, never raises.

        When the queue is full, the newest item that need not be kept goes first, which may be this one.
        """
        lost: list[T] = []
        reason = "queue_full"
        with self._changed:
            if self._closed:
                lost, reason = [item], "shutdown"
            elif len(self._queue) < self._size:
                self._admit(item, keep)
            elif keep and self._droppable:
                lost = [self._queue.pop(self._droppable.pop())]
                self._admit(item, keep)
            else:
                lost = [item]
        self._report(lost, reason)

    @property
    def pending(self) -> int:
        """Items queued or in delivery."""
        with self._changed:
            return len(self._queue) + self._in_delivery

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything put so far is delivered or dropped; False when `timeout` seconds were too few."""
        with self._changed:
            end = self._serial
            may_wait = threading.current_thread() is not self._thread and (not self._queue or self._start())
            return self._changed.wait_for(lambda: self._oldest() >= end, timeout if may_wait else 0)

    def close(self, timeout: float | None = None) -> None:
        """Flush for at most `timeout` seconds (default: `flush_seconds`), then drop what is queued; idempotent.

        A batch that is still in delivery afterwards stays pending, since its outcome is not known; a line is logged.
        """
        with self._changed:
            self._closed = True
            thread = self._thread
            if thread is not None:
                self._pin[:] = [self]
                self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._flush_seconds if timeout is None else timeout)
        with self._changed:
            rest = list(self._queue.values())
            self._queue.clear()
            self._droppable.clear()
            stuck = self._in_delivery
            self._changed.notify_all()
        self._report(rest, "shutdown")
        if stuck or rest:
            logger.warning("fastrm-monitor: closed with %d records dropped and %d in delivery", len(rest), stuck)

    # --- with the lock held ---------------------------------------------------------------------------------------

    def _admit(self, item: T, keep: bool) -> None:
        self._queue[self._serial] = item
        if not keep:
            self._droppable.append(self._serial)
        self._serial += 1
        if not self._pin:
            self._pin.append(self)
            self._changed.notify_all()
        self._start()

    def _start(self) -> bool:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(
                target=_serve, args=(ref(self), self._changed, self._pin), name="fastrm-writer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # no threads left, or the interpreter is ending: the next put tries again
                log_once("fastrm-monitor: no background thread yet: %s", "thread", error)
                return False
            self._thread = thread
        return True

    def _oldest(self) -> int:
        """Serial number before which everything is delivered or dropped."""
        return self._delivery_from if self._in_delivery else next(iter(self._queue), self._serial)

    def _take(self) -> list[T]:
        items: list[T] = []
        self._delivery_from = self._oldest()
        while self._queue and len(items) < self._batch:
            serial, item = self._queue.popitem(last=False)
            if self._droppable and self._droppable[0] == serial:
                self._droppable.popleft()
            items.append(item)
        self._in_delivery = len(items)
        return items

    # --- on the background thread -----------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Deliver one batch, if there is one, and call `idle`; False when the thread may end."""
        with self._changed:
            last = self._closed  # read before `idle`, which is to be called once more after the closing
            items = self._take()
        if items:
            try:
                self._deliver(items)
            except BaseException as error:  # SystemExit, too, would end the thread and lose the batch in silence
                log_once("fastrm-monitor: a batch could not be delivered: %s", "deliver", error)
                self._report(items, "store_error")
        with self._changed:
            self._in_delivery = 0
            if not self._queue and last == self._closed:  # closed meanwhile: there is a last turn to do
                self._pin.clear()
            self._changed.notify_all()
        if self._idle is not None:
            try:
                self._idle()
            except Exception as error:
                log_once("fastrm-monitor: the idle work failed: %s", "idle", error)
        with self._changed:
            return not last or bool(self._queue)

    def _report(self, lost: Sequence[T], reason: str) -> None:
        for item in lost:
            try:
                self._dropped(item, reason)
            except Exception as error:
                log_once("fastrm-monitor: a dropped record could not be counted: %s", "dropped", error)


def _serve(writer_ref: ref[Writer[T]], changed: threading.Condition, pin: list[Writer[T]]) -> None:
    while (writer := writer_ref()) is not None:
        if not writer._turn():
            return
        del writer  # while waiting, nothing here may keep it alive
        with changed:
            if not pin:
                changed.wait(_IDLE_SECONDS)


_writers: WeakSet[Writer[Any]] = WeakSet()


def _close_all() -> None:
    """At the end of the process; the threads work side by side, so their deadlines run from the same moment."""
    began = time.monotonic()
    for writer in list(_writers):
        writer.close(max(0.0, began + writer._flush_seconds - time.monotonic()))


atexit.register(_close_all)
