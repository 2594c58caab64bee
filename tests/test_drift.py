"""Drift: the statistics are the known ones, chance alone raises no alarm, a shift does, and memory stays bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import select

from fastrm_monitor.drift.reference import Reference, load_reference
from fastrm_monitor.drift.statistics import kolmogorov_smirnov, population_stability, wasserstein
from fastrm_monitor.drift.watch import STATISTICS, Drift, DriftWatch
from fastrm_monitor.errors import DataError, ProxyError, StoreError
from fastrm_monitor.records.drift import DriftLog, add_drift, reference_of
from fastrm_monitor.records.models import DriftValue
from fastrm_monitor.records.store import Store

ALARM = 0.001
"""Below this `ks_p` the shipped alert rule fires."""


class Clock:
    """Seconds that the test decides."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def feed(watch, clock, rows, seconds=1.0):
    """Add rows, `seconds` apart; the windows that were completed."""
    windows = []
    for row in rows:
        clock.now += seconds
        found = watch.add(row)
        if found:
            windows.append({one.feature: one for one in found})
    return windows


def rows_of(rng, count, **shifts):
    """Answers with six independent features, moved by so many standard deviations."""
    names = ("confidence", "map_entropy", "map_mass", "map_max", "token_entropy", "p_ik")
    values = rng.normal(size=(count, len(names))) + [shifts.get(name, 0.0) for name in names]
    return [dict(zip(names, row, strict=True)) for row in values.tolist()]


# --- the statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "shift"), [(200, 200, 0.0), (1000, 300, 0.1), (60, 500, 0.3), (1000, 1000, 0.2)])
def test_kolmogorov_smirnov_is_scipys(n, m, shift):
    """D is scipy's exactly; the p value is scipy's exact one within a tenth of it, and small where that is small."""
    rng = np.random.default_rng(n + m)
    reference, window = np.sort(rng.normal(size=n)), rng.normal(shift, 1, size=m)
    d, p = kolmogorov_smirnov(reference, window)
    known = stats.ks_2samp(reference, window, method="exact")
    assert d == pytest.approx(known.statistic, abs=1e-12)
    assert p == pytest.approx(known.pvalue, rel=0.1, abs=0.01)
    far = kolmogorov_smirnov(reference, window + 5)
    assert far[0] == pytest.approx(1.0, abs=0.03)
    assert far[1] < 1e-12


def test_wasserstein_is_scipys():
    """W1 is scipy's for samples of unequal size with ties, and the shift itself for a moved sample."""
    rng = np.random.default_rng(0)
    reference, window = np.sort(rng.integers(0, 9, 300) / 8), rng.beta(2, 3, 170)
    assert wasserstein(reference, window) == pytest.approx(stats.wasserstein_distance(reference, window), abs=1e-12)
    assert wasserstein(reference, reference + 0.25) == pytest.approx(0.25)


def test_population_stability_by_hand():
    """Over two halves (p = 1/2, 1/2) a window of 3/4 and 1/4 has PSI 1/4 ln 3; the same sample has 0."""
    reference = np.repeat([0.0, 1.0], 50_000)  # ties leave one edge of the nine
    window = np.repeat([0.0, 1.0], [75_000, 25_000])
    assert population_stability(reference, window) == pytest.approx(0.25 * np.log(3), rel=1e-3)
    assert population_stability(reference, reference) == 0


def test_population_stability_by_chance_is_as_documented():
    """Without drift its mean is about (bins - 1) (1/n + 1/m): 0.027 for 1000 and 500 answers."""
    rng = np.random.default_rng(1)
    values = [population_stability(np.sort(rng.normal(size=1000)), rng.normal(size=500)) for _ in range(200)]
    assert np.mean(values) == pytest.approx(9 * (1 / 1000 + 1 / 500), rel=0.15)


def test_constant_and_empty_samples():
    """A feature that never changes has not drifted; a sample of nothing is refused."""
    same = np.full(300, 0.5)
    assert kolmogorov_smirnov(same, same) == (0.0, 1.0)
    assert (population_stability(same, same), wasserstein(same, same)) == (0.0, 0.0)
    assert population_stability(same, same + 0.1) > 1
    for statistic in (kolmogorov_smirnov, population_stability, wasserstein):
        with pytest.raises(ValueError, match="empty sample"):
            statistic(same, np.array([]))


# --- the windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_false_alarms_are_as_rare_as_they_say(level):
    """Over 600 seeds without drift, a window alarms about as often as its nominal level says, all features together."""
    alarms = 0
    for seed in range(600):
        clock = Clock()
        watch = DriftWatch(size=200, minimum=200, period=0, clock=clock, seed=seed)
        (window,) = feed(watch, clock, rows_of(np.random.default_rng(seed), 400))
        alarms += min(one.ks_p for one in window.values()) < level
    rate = alarms / 600
    print(f"nominal {level}, measured {rate:.3f}")  # noqa: T201 - shown by pytest -rP
    # Binomial noise is 0.009 and 0.016; D's steps make the test a little cautious, and so does Bonferroni.
    assert 0.55 * level < rate < 1.35 * level


def test_planted_shift_is_found_and_named():
    """Half a standard deviation in one feature: that feature alarms in every window, and the others stay quiet."""
    for seed in range(10):
        rng, clock = np.random.default_rng(seed), Clock()
        watch = DriftWatch(clock=clock, period=0, minimum=500, seed=seed)
        windows = feed(watch, clock, [*rows_of(rng, 1000), *rows_of(rng, 1000, map_entropy=0.5)])
        assert len(windows) == 2
        for window in windows:
            assert window["map_entropy"].ks_p < ALARM
            assert window["map_entropy"].wasserstein == pytest.approx(0.5, abs=0.2)
            assert window["map_entropy"].psi > 0.1
            assert min(window[name].ks_p for name in window if name != "map_entropy") > ALARM
            assert (window["confidence"].n_reference, window["confidence"].n_window) == (1000, 500)


def test_silence_below_the_minimum():
    """Nothing is said of too few answers, however long they took, nor of a feature that too few of them have."""
    rng, clock = np.random.default_rng(0), Clock()
    watch = DriftWatch(clock=clock, size=300, minimum=200, period=600)
    assert feed(watch, clock, rows_of(rng, 300)) == []  # the reference
    assert feed(watch, clock, rows_of(rng, 199), seconds=60) == []
    rare = [{**row, "grounding": 0.5} for row in rows_of(rng, 1)]
    (window,) = feed(watch, clock, rare)
    assert sorted(window) == ["confidence", "map_entropy", "map_mass", "map_max", "p_ik", "token_entropy"]
    lacking = [{"confidence": row["confidence"]} for row in rows_of(rng, 150)]
    (window,) = feed(watch, clock, [*lacking, *rows_of(rng, 50)], seconds=60)
    assert list(window) == ["confidence"]


def test_a_window_lasts_its_period():
    """However many answers come, one window a period is compared, and no more than `size` of them are kept."""
    rng, clock = np.random.default_rng(0), Clock()
    watch = DriftWatch(clock=clock, size=250, minimum=200, period=100)
    feed(watch, clock, rows_of(rng, 250), seconds=0.1)
    windows = feed(watch, clock, rows_of(rng, 3050), seconds=0.1)
    assert len(windows) == 3
    assert {one.n_window for window in windows for one in window.values()} == {250}
    assert len(watch._rows) <= 250


def test_sample_of_a_busy_period_is_uniform():
    """The kept answers stand for the whole period, not for its beginning or its end."""
    clock = Clock()
    watch = DriftWatch(Reference.of([{"x": k / 100} for k in range(100)], "v"), clock=clock, size=100, minimum=100,
                       period=5000, seed=3)  # fmt: skip
    (window,) = feed(watch, clock, [{"x": k / 5000} for k in range(5001)])
    assert window["x"].ks_p > 0.05


def test_odd_numbers_are_left_out():
    """What is not finite counts as missing, in reference and window, and never as a number."""
    clock = Clock()
    watch = DriftWatch(clock=clock, size=100, minimum=100, period=0)
    odd = [{"x": float(k), "y": float("nan") if k % 2 else float("inf")} for k in range(100)]
    (window,) = feed(watch, clock, odd * 2)
    assert list(window) == ["x"]
    assert (window["x"].ks, window["x"].n_window) == (0.0, 100)


def test_series_are_bounded():
    """A proxy with thousands of features makes at most 32 of them drift."""
    clock = Clock()
    watch = DriftWatch(clock=clock, size=50, minimum=50, period=0)
    (window,) = feed(watch, clock, [{f"f{n:04}": float(k) for n in range(2000)} for k in range(50)] * 2)
    assert len(window) == 32


def test_child_begins_a_window_of_its_own():
    """After a fork the child has the reference and none of its parent's answers."""
    rng, clock = np.random.default_rng(0), Clock()
    watch = DriftWatch(clock=clock, size=100, minimum=100, period=0)
    feed(watch, clock, rows_of(rng, 199))
    watch.after_fork()
    assert watch.add(rows_of(rng, 1)[0]) == []
    assert watch.reference is not None
    assert len(watch._rows) == 1


# --- the reference in the proxy folder ------------------------------------------------------------------------------


def test_reference_file(tmp_path):
    """What is saved is loaded again to six digits, and a watch with it needs no first answers of its own."""
    rng = np.random.default_rng(0)
    made = Reference.of(rows_of(rng, 300), "v1")
    assert made.save(tmp_path) == tmp_path / "reference.json"
    loaded = load_reference(tmp_path, "v1")
    assert sorted(loaded.values) == sorted(made.values)
    for name, values in made.values.items():
        assert loaded.values[name] == pytest.approx(values, rel=1e-5)
    clock = Clock()
    watch = DriftWatch(loaded, clock=clock, minimum=200, period=0)
    assert len(feed(watch, clock, rows_of(rng, 200))) == 1
    assert load_reference(tmp_path / "elsewhere", "v1") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"proxy_version": "v1", "values": {"x": [1, "a"]}}',
             '{"proxy_version": "v1", "values": {"x": [NaN]}}', '{"proxy_version": "v1", "values": {"x": [[1]]}}',
             '{"proxy_version": "v1", "values": 3}', "[" * 100_000],
)  # fmt: skip
def test_broken_reference_is_one_sentence(tmp_path, text):
    """A file that cannot be understood says which and what to do."""
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(ProxyError, match=r"reference\.json cannot be read .* make it again, or delete it"):
        load_reference(tmp_path, "v1")


def test_reference_of_another_proxy_is_refused(tmp_path):
    """Features of another proxy are other numbers."""
    Reference({"x": np.arange(3.0)}, "v1").save(tmp_path)
    with pytest.raises(ProxyError, match="is the reference of proxy v1 and this is proxy v2"):
        load_reference(tmp_path, "v2")
    assert json.loads((tmp_path / "reference.json").read_text())["values"] == {"x": [0, 1, 2]}


# --- the store ------------------------------------------------------------------------------------------------------


def test_windows_in_the_store(any_store_url):
    """One row a feature and statistic, with the numbers of answers, as they were; an empty window writes none."""
    found = [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400), Drift("map_entropy", 0.0, 1.0, 0.0, 0.0, 900, 300)]
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with Store(any_store_url) as store:
        add_drift(store, "host:1", "llava", found, at)
        add_drift(store, "host:1", "llava", [])
        with store.session() as session:
            rows = list(session.scalars(select(DriftValue).order_by(DriftValue.id)))
    assert [(row.feature, row.statistic) for row in rows] == [
        (feature, statistic) for feature in ("confidence", "map_entropy") for statistic in STATISTICS
    ]
    assert [row.value for row in rows[:4]] == [0.25, 1e-9, 0.5, 0.125]
    assert {(row.server, row.model, row.created_at) for row in rows} == {("host:1", "llava", at)}
    assert [(row.n_reference, row.n_window) for row in rows] == [(1000, 400)] * 4 + [(900, 300)] * 4


def test_failing_store_is_an_error(store_url):
    """A window that could not be written is not taken for written."""
    store = Store(store_url)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        add_drift(store, "host:1", "llava", [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400)])


def test_windows_wait_for_a_store_that_is_away(store_url):
    """Windows of a time without a store are written with the next one, in order, with their own times."""
    found = [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400)]
    with Store(store_url) as store:
        log = DriftLog(store, keep=2)
        for server in ("forgotten", "kept", "last"):
            log.add(server, "llava", found, away=True)
        with store.session() as session:
            assert session.scalars(select(DriftValue)).all() == []
        log.add("back", "llava", found)
        log.add("back", "llava", [])
        with store.session() as session:
            rows = list(session.scalars(select(DriftValue).order_by(DriftValue.id)))
    assert [row.server for row in rows[:: len(STATISTICS)]] == ["last", "back"]
    assert rows[0].created_at < rows[-1].created_at


def test_reference_of_the_stores_sample(any_store_url, make_case):
    """It is made of the sampled cases of one model, one time and the newest proxy; flagged ones alone do not count."""
    now = datetime.now(UTC)
    with Store(any_store_url) as store:
        store.add(
            [
                *(make_case(k, sampled=True, flagged=False, confidence=0.5 + k / 100,
                            created_at=now - timedelta(minutes=k)) for k in range(5)),
                make_case(10, sampled=False),
                make_case(11, sampled=True, model="other"),
                make_case(12, sampled=True, proxy_version="older", created_at=now - timedelta(days=1)),
            ]
        )  # fmt: skip
        made = reference_of(store, "llava-tiny")
        assert made.proxy_version == "a1b2c3d4"
        assert made.values["confidence"] == pytest.approx([0.5, 0.51, 0.52, 0.53, 0.54])
        assert sorted(made.values) == ["confidence", "map_entropy", "token_entropy", "token_probability"]
        early = reference_of(store, "llava-tiny", until=now - timedelta(minutes=2.5))
        assert early.values["confidence"] == pytest.approx([0.53, 0.54])
        with pytest.raises(DataError, match="has no sampled answer of 'llava-tiny' in that time"):
            reference_of(store, "llava-tiny", since=now + timedelta(hours=1))
