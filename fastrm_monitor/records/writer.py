"""A bounded queue and the background thread that empties it, so that telemetry and storage never delay an answer.

The monitor puts answers in and says how a batch is delivered. Knows nothing of answers, databases or telemetry.
The bound on items counts what is queued, the batch in delivery comes on top; the bound on bytes holds for both.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar
from weakref import ref

from fastrm_monitor.guard import log_once, logger
from fastrm_monitor.records import ending
from fastrm_monitor.records.forks import renew_in_child

T = TypeVar("T")

_IDLE_SECONDS = 1.0
_GATHER_SECONDS = 0.05
"""How long an incomplete batch waits for more: fewer transactions, and a lock that others get, too."""
_BATCH_BYTES = 16 << 20
_RESCUE_SHARES = (0.4, 0.7)
"""Of `flush_seconds`, with an empty queue and with a full one: so much of the end is kept for `rescue`."""
_STALL_SECONDS = 0.3
"""A delivery that takes longer than this at the end leaves the queue to `rescue` at once."""


class _Queued(NamedTuple, Generic[T]):
    item: T
    size: int


class Writer(Generic[T]):
    """Delivers items in order on a daemon thread, which starts at the first `put`, or earlier by `wake`.

    When the process forks, the parent delivers what it had queued; the child begins empty, with a thread of its own.
    When the process ends, what is queued is delivered for at most `flush_seconds`, items to be kept first.

    Args:
        deliver: takes a batch in order; does its own retries. When it raises, the batch is dropped as "store_error".
            Where there is a `rescue`, it asks `pass_on` before it counts or keeps anything.
        size: items that may be queued.
        most_bytes: bytes that queued items and those in delivery may have together.
        flush_seconds: longest wait of `close` and of the end of the process.
        dropped: told of every item that is lost, and why: "queue_full", "too_large", "store_error" or "shutdown".
        batch: most items in one delivery.
        idle: called after each batch and about once a second while the thread lives, and once before it ends.
        hurry: called once, when closing begins, so that a delivery stops waiting.
        rescue: called by `close` when the thread was too slow, with what the delivery has not passed on and what is
            queued, and the monotonic time until which it may work; saves that, and what was passed on, in another way,
            and returns what it could not. Without one the queue is dropped, and the batch in delivery stays pending.
        sigterm: whether SIGTERM closes, too (see `ending`).
    """

    def __init__(
        self,
        deliver: Callable[[list[T]], None],
        *,
        size: int,
        flush_seconds: float,
        dropped: Callable[[T, str], None],
        most_bytes: int = 1 << 62,
        batch: int = 64,
        idle: Callable[[], None] | None = None,
        hurry: Callable[[], None] | None = None,
        rescue: Callable[[list[T], float], list[T]] | None = None,
        sigterm: bool = False,
    ) -> None:
        self._deliver, self._dropped, self._idle = deliver, dropped, idle
        self._hurry, self._rescue = hurry, rescue
        self._size, self._most_bytes, self._batch = size, most_bytes, batch
        self.flush_seconds = flush_seconds
        self._closed = False
        self._sigterm = sigterm  # still to be arranged
        self.after_fork()
        renew_in_child(self)
        ending.close_at_end(self)

    def after_fork(self) -> None:
        """Begin empty: what the parent had queued is the parent's."""
        self._changed = threading.Condition()
        self._closing = threading.RLock()
        self._queue: OrderedDict[int, _Queued[T]] = OrderedDict()  # by serial number
        self._droppable: deque[int] = deque()  # serial numbers of the queued items that need not be kept
        self._bytes = self._droppable_bytes = self._bytes_in_delivery = 0  # the first is of all items
        self._serial = 0  # of the next item
        self._batches = 0  # taken for delivery so far
        self._in_delivery = 0  # items
        self._in_hand: list[T] = []  # those of them that are not passed on
        self._taken_back = False  # by `close`, since they were not passed on
        self._delivery_from = 0  # serial number of the first of them
        self._waiting = 0  # flushes
        self._thread: threading.Thread | None = None
        self._rescuer: threading.Thread | None = None
        # The thread knows its writer by a weak reference, so that an abandoned writer goes away with its thread.
        # The pin is the strong one, and it is there exactly as long as there is something to do.
        self._pin: list[Writer[T]] = []

    def put(self, item: T, keep: bool, size: int = 0) -> None:
        """Queue an item of `size` bytes; never blocks, never raises.

        When the queue is full, the newest items that need not be kept go first, which may be this one.
        """
        lost: list[T] = []
        reason = "queue_full"
        with self._changed:
            if self._closed:
                lost, reason = [item], "shutdown"
            elif size > self._most_bytes:
                lost, reason = [item], "too_large"
            elif self._fits(size):
                self._admit(item, keep, size)
            elif keep and self._fits(size, len(self._droppable), self._droppable_bytes):
                while not self._fits(size):
                    lost.append(self._evict())
                self._admit(item, keep, size)
            else:
                lost = [item]
        self._report(lost, reason)
        if self._sigterm and ending.arrange_sigterm():
            self._sigterm = False

    def wake(self) -> None:
        """Start the thread although nothing was put yet: there is something to do for `idle`."""
        with self._changed:
            self._start()

    @property
    def pending(self) -> int:
        """Items queued or in delivery."""
        with self._changed:
            return len(self._queue) + self._in_delivery

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is taken."""
        with self._changed:
            return 2 * len(self._queue) > self._size or 2 * self._bytes > self._most_bytes

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything put so far is delivered or dropped; False when `timeout` seconds were too few."""
        with self._changed:
            end = self._serial
            may_wait = threading.current_thread() is not self._thread and (not self._queue or self._start())
            self._waiting += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._oldest() >= end, timeout if may_wait else 0)
            finally:
                self._waiting -= 1

    def pass_on(self, take: Callable[[], None]) -> bool:
        """Inside `deliver`: `take` the batch into other hands; False, without that, when `close` has it already."""
        with self._changed:
            if threading.current_thread() is not self._rescuer:  # whose items are nobody else's
                if self._taken_back:
                    return False
                self._in_hand = []
            take()
            return True

    def begin_close(self) -> None:
        """Take nothing more, and deliver without waiting; idempotent."""
        with self._changed:
            first, self._closed = not self._closed, True
            if first:
                for serial in self._droppable:
                    self._queue.move_to_end(serial)
            if self._thread is not None:
                self._pin[:] = [self]
            self._changed.notify_all()
        if first and self._hurry is not None:
            self._hurry()

    def close(self, timeout: float | None = None) -> None:
        """Flush for at most `timeout` seconds (default: `flush_seconds`), then drop what is queued; idempotent."""
        timeout = self.flush_seconds if timeout is None else timeout
        until = time.monotonic() + timeout
        self.begin_close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wait_for(thread, until - self._rescue_seconds())
        with self._closing:  # who comes second, as the main thread does after SIGTERM, returns when all is saved
            self._save_rest(until)

    def _save_rest(self, until: float) -> None:
        """Have `rescue` save what is left until then, or drop it."""
        with self._changed:
            rest = [queued.item for queued in self._queue.values()]
            if self._rescue is not None and self._in_hand:
                rest, self._in_hand, self._taken_back = self._in_hand + rest, [], True
            self._queue.clear()
            self._droppable.clear()
            self._bytes, self._droppable_bytes = self._bytes_in_delivery, 0
            stuck = self._in_delivery
            self._changed.notify_all()
        if self._rescue is not None and (rest or stuck):
            self._rescuer = threading.current_thread()
            rest, stuck = self._rescue(rest, until), 0
        self._report(rest, "shutdown")
        if stuck or rest:
            logger.warning("fastrm-monitor: closed with %d records dropped and %d in delivery", len(rest), stuck)

    def _wait_for(self, thread: threading.Thread, until: float) -> None:
        """Wait for the thread's end, until then at most, or until it stalls and others could save what is queued."""
        while thread.is_alive():
            left, batch = until - time.monotonic(), self._batches
            if left <= 0:
                return
            thread.join(left if self._rescue is None else min(left, _STALL_SECONDS))
            if self._rescue is not None and self._queue and batch == self._batches:
                return

    def _rescue_seconds(self) -> float:
        """However little is left to close, as after a flush on SIGTERM: so long it may take to save what waits."""
        few, many = _RESCUE_SHARES
        share = few + (many - few) * min(1.0, self.pending / self._size)
        return 0.0 if self._rescue is None else share * self.flush_seconds

    # --- with the lock held ---------------------------------------------------------------------------------------

    def _fits(self, size: int, without: int = 0, without_bytes: int = 0) -> bool:
        room = len(self._queue) - without < self._size
        return room and self._bytes - without_bytes + size <= self._most_bytes

    def _admit(self, item: T, keep: bool, size: int) -> None:
        self._queue[self._serial] = _Queued(item, size)
        self._bytes += size
        if not keep:
            self._droppable.append(self._serial)
            self._droppable_bytes += size
        self._serial += 1
        if not self._pin:
            self._pin.append(self)
            self._changed.notify_all()
        self._start()

    def _evict(self) -> T:
        item, size = self._queue.pop(self._droppable.pop())
        self._bytes -= size
        self._droppable_bytes -= size
        return item

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
            ending.arrange()
        return True

    def _oldest(self) -> int:
        """Serial number before which everything is delivered or dropped."""
        if self._in_delivery:
            return self._delivery_from
        if self._closed:  # the queue has another order
            return min(self._queue, default=self._serial)
        return next(iter(self._queue), self._serial)

    def _take(self) -> list[T]:
        items: list[T] = []
        self._delivery_from = self._oldest()
        self._bytes_in_delivery = 0
        while self._queue and len(items) < self._batch and self._bytes_in_delivery < _BATCH_BYTES:
            serial, (item, size) = self._queue.popitem(last=False)
            if self._droppable and self._droppable[0] == serial:
                self._droppable.popleft()
                self._droppable_bytes -= size
            self._bytes_in_delivery += size
            items.append(item)
        self._in_delivery, self._in_hand, self._taken_back = len(items), items, False
        self._batches += 1
        return items

    def _may_go(self) -> bool:
        """Whether a batch need not wait for more items."""
        return self._closed or self._waiting > 0 or len(self._queue) >= self._batch

    # --- on the background thread -----------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Deliver one batch, if there is one, and call `idle`; False when the thread may end."""
        with self._changed:
            if self._queue:
                self._changed.wait_for(self._may_go, _GATHER_SECONDS)
            last = self._closed  # read before `idle`, which is to be called once more after the closing
            items = self._take()
        if items:
            try:
                self._deliver(items)
            except BaseException as error:  # SystemExit, too, would end the thread and lose the batch in silence
                log_once("fastrm-monitor: a batch could not be delivered: %s", "deliver", error)
                with self._changed:
                    self._in_hand = []
                if not self._taken_back:
                    self._report(items, "store_error")
        with self._changed:
            self._in_delivery, self._in_hand = 0, []
            self._bytes -= self._bytes_in_delivery
            self._bytes_in_delivery = 0
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
