"""The circuit breaker: quick to notice, slow to insist, and never stuck."""

from fastrm_monitor.records.breaker import CircuitBreaker


class Clock:
    """Monotonic seconds that stand where they are set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def made(**options):
    clock = Clock()
    return CircuitBreaker(clock=clock, **{"draw": lambda: 0.0, **options}), clock


def test_opens_after_failures_in_a_row():
    """Three failures in a row open it, and the third says so; a success in between begins anew."""
    breaker, _ = made()
    assert [breaker.failed(), breaker.failed(), breaker.succeeded()] == [False, False, False]
    assert [breaker.failed(), breaker.failed(), breaker.failed(), breaker.failed()] == [False, False, True, False]
    assert breaker.is_open
    assert not breaker.allows()


def test_intervals_grow_and_are_bounded():
    """Each failed try doubles the interval until the next, from one second to a minute."""
    breaker, clock = made()
    intervals = []
    for _ in range(3):
        breaker.failed()
    for _ in range(8):
        began = clock.now
        while not breaker.allows():
            clock.now += 0.5
        intervals.append(clock.now - began)
        breaker.failed()
    assert intervals == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_million_failures_are_no_overflow():
    """However long the store is away, the interval is a minute."""
    breaker, clock = made()
    for _ in range(100_000):
        breaker.failed()
    clock.now += 60
    assert breaker.allows()


def test_jitter_shortens_by_up_to_half():
    """Servers that lost the same store come back at different moments."""
    breaker, clock = made(draw=lambda: 1.0)
    for _ in range(3):
        breaker.failed()
    clock.now += 0.49
    assert not breaker.allows()
    clock.now += 0.02
    assert breaker.allows()


def test_a_success_closes_it():
    """The first success closes it, says so once, and the next outage begins with the first interval."""
    breaker, clock = made()
    for _ in range(6):
        breaker.failed()
    assert [breaker.succeeded(), breaker.succeeded()] == [True, False]
    assert breaker.allows()
    for _ in range(3):
        breaker.failed()
    clock.now += 1
    assert breaker.allows()


def test_at_once():
    """One failure is enough where there is no time for three."""
    breaker, _ = made()
    assert breaker.failed(at_once=True)
    assert not breaker.allows()
