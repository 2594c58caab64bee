"""axe-core finds nothing serious in any page, light or dark, in a real Chromium.

axe-core comes from npm (`make test` and `.ci/run` install it). Without it or the browser the tests are skipped, or fail
where FASTRM_REQUIRE_BROWSER is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastrm_monitor.calibration.answers import from_store
from fastrm_monitor.calibration.choice import calibrate
from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.records.drift import add_drift
from fastrm_monitor.records.store import Store
from tests.test_browser import Page, shots  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser

AXE = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"

PAGES = {
    "/": "Overview",
    "/queue": "Review queue",
    "/case?case={open}": "Case",
    "/case?case={reviewed}": "Case",
    "/calibration": "Calibration",
    "/calibration?at-risk=40": "Calibration",
    "/health": "Health",
}
"""Paths and headings."""


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.exists():
        missing = f"axe-core is not installed: npm install --prefix {sys.prefix}/axe axe-core"
        (pytest.fail if os.environ.get("FASTRM_REQUIRE_BROWSER") == "1" else pytest.skip)(missing)
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(shots: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, dict[str, str]]]:  # noqa: F811
    """A dashboard with something on every page, one without anything, and the ids of an open and a reviewed case."""
    from tests.conftest import drawn_case
    from tests.test_dashboard_calibration import traffic

    folder = tmp_path_factory.mktemp("axe")
    full, empty = (f"sqlite:///{folder / name}.db" for name in ("full", "empty"))
    Store(empty).close()
    now = datetime.now(UTC)
    with Store(full) as store:
        cases = [drawn_case(number, sampled=number % 2 == 0) for number in range(12)]
        store.add([*cases, *traffic(120)])
        for case, verdict in zip(cases[6:], ("correct", "wrong", "not_grounded", "unsure"), strict=False):
            store.review(case.case_id, verdict, "ann", "a note", ["glare"])
        counts = {"seen": 90, "scored": 80, "flagged": 12, "stored": 12, "sampled_out": 66, "confidence_sum": 61.5}
        rows = [(now, name, "", float(value)) for name, value in counts.items()]
        store.add_traffic("host:1", [*rows, (now, "skipped", "no_image", 10), (now, "dropped", "queue_full", 2)])
        found = [Drift(name, 0.2, p, psi, 0.1, 1000, 400) for name, p, psi in (("confidence", 0, 0), ("area", 1, 0.2))]
        for _ in range(2):
            calibrate(from_store(store), "flag-rate", 0.2).publish(store, "ann", "a note")
        add_drift(store, "host:1", "llava", found)
    with shots.dashboard(full) as there, shots.dashboard(empty) as bare:
        yield there, bare, {"open": cases[0].case_id, "reviewed": cases[7].case_id}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding(shots: ModuleType, site: tuple[str, str, dict[str, str]], axe: str, scheme: str) -> None:  # noqa: F811
    """No page has a serious or critical finding, in either colour scheme; nor has one with nothing to show."""
    there, bare, ids = site
    found = []
    with shots.browser(scheme) as driver:
        for address in (there, bare) if scheme == "light" else (there,):
            page = Page(driver, address)
            for path, heading in PAGES.items():
                page.open(path.format(**ids), heading)
                page.settle()
                found += [f"{scheme} {path} {one}" for one in serious(driver, axe)]
    assert not found, "\n".join(found)


def serious(driver: Any, axe: str) -> list[str]:
    """Serious and critical findings, each with its element."""
    driver.execute_script(axe)
    result = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(done, error => done({error: String(error)}));"
    )
    assert "error" not in result, result
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_axe_sees_what_is_wrong(shots: ModuleType, axe: str) -> None:  # noqa: F811
    """The check can fail: a picture without words and grey on grey are called serious."""
    with shots.browser("light") as driver:
        driver.get("data:text/html,<title>t</title><img src=x><p style='color:%23999;background:%23888'>grey on grey")
        rules = {one.split()[0] for one in serious(driver, axe)}
    assert {"image-alt", "color-contrast"} <= rules
