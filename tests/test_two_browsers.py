"""Two reviewers, each in a Chromium of their own, at one queue: no case is labelled twice unawares, nothing is lost.

Without Chromium and chromedriver the tests are skipped, or fail where FASTRM_REQUIRE_BROWSER is 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, select

from fastrm_monitor.records.models import Case, CasePicture, Claim, Review
from fastrm_monitor.records.store import Store
from tests.test_browser import Page, added, shots  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

Make = Callable[..., Case]


@pytest.fixture(scope="module")
def site(shots: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:  # noqa: F811
    """The address of a running dashboard, and its store."""
    url = f"sqlite:///{tmp_path_factory.mktemp('two') / 'store.db'}"
    with Store(url) as opened, shots.dashboard(url) as address:
        yield address, opened


@pytest.fixture(scope="module")
def drivers(shots: ModuleType) -> Iterator[tuple[Chrome, Chrome]]:  # noqa: F811
    with shots.browser("light") as one, shots.browser("dark") as other:
        yield one, other


@pytest.fixture
def store(site: tuple[str, Store], drivers: tuple[Chrome, Chrome]) -> Store:
    """The dashboard's store, empty, and nobody at it."""
    for driver in drivers:
        driver.get("about:blank")
    with site[1].session(write=True) as session:
        for table in (Claim, Review, CasePicture, Case):
            session.execute(delete(table))
    return site[1]


@pytest.fixture
def ana(drivers: tuple[Chrome, Chrome], site: tuple[str, Store], store: Store) -> Page:
    return Page(drivers[0], site[0])


@pytest.fixture
def ben(drivers: tuple[Chrome, Chrome], site: tuple[str, Store], store: Store) -> Page:
    return Page(drivers[1], site[0])


def sit_down(page: Page, name: str, path: str = "/queue", heading: str = "Review queue") -> None:
    """Open a page and say who one is."""
    page.open(path, heading)
    (field,) = page.find("input[aria-label='Reviewer']")
    field.send_keys(f"{name}\n")
    page.driver.execute_script("document.activeElement.blur()")
    page.settle()


def write(page: Page, note: str) -> None:
    """A note for the next verdict."""
    (field,) = page.seen(".st-key-frm-verdicts input")
    field.send_keys(f"{note}\n")
    page.settle()


def written(store: Store) -> list[tuple[str, str, str, str, datetime]]:
    """(case id, reviewer, verdict, note, when) of every review, oldest first."""
    with store.session() as session:
        query = (
            select(Case.case_id, Review.reviewer, Review.verdict, Review.note, Review.created_at)
            .join(Review.case)
            .order_by(Review.id)
        )
        return [(case_id, who, verdict, note, at) for case_id, who, verdict, note, at in session.execute(query)]


def notices(page: Page) -> str:
    return " ".join(page.texts(".frm-notice"))


def test_two_browsers_share_a_queue(ana: Page, ben: Page, store: Store, make_case: Make) -> None:
    """Two who label at the same time never look at one case, and together label each case once."""
    cases = added(store, *(make_case(number, question=f"question {number}?") for number in range(10)))
    sit_down(ana, "Ana")
    sit_down(ben, "Ben")
    seen = []
    for turn in range(len(cases) // 2):
        both = ana.question(), ben.question()
        assert both[0] != both[1]
        seen += both
        ana.keys("1")
        ben.keys("2")
        for page, before in zip((ana, ben), both, strict=True):
            page.until(lambda page=page, before=before: page.question() != before and page.idle(), f"turn {turn} ends")
    assert sorted(seen) == sorted(question for _, question in cases)
    found = written(store)
    assert sorted(case_id for case_id, *_ in found) == sorted(case_id for case_id, _ in cases)
    assert {(who, verdict) for _, who, verdict, *_ in found} == {("Ana", "correct"), ("Ben", "wrong")}
    assert len(found) == len(cases)


def test_conflict_is_shown_and_nothing_lost(ana: Page, ben: Page, store: Store, make_case: Make) -> None:
    """Who opens the case of another by its link is told so; of two verdicts both are kept, with who, when and notes."""
    ((case_id, question), _) = added(store, make_case(0, question="whose?"), make_case(1, question="next?"))
    began = datetime.now(UTC)
    sit_down(ana, "Ana")
    assert ana.question() == question
    sit_down(ben, "Ben", f"/queue?case={case_id}")
    assert ben.question() == question
    assert "Ana is looking at this case" in notices(ben)

    write(ben, "seen by Ben")
    ben.keys("2")
    ben.until(lambda: ben.question() == "next?", "Ben goes on")
    write(ana, "seen by Ana #hard")  # the page learns of the verdict
    told = r"Ben labelled this case “Wrong” \d+ s ago\."
    assert re.search(told, notices(ana))
    assert [row[1] for row in written(store)] == ["Ben"]

    ana.keys("1")
    ana.until(lambda: len(written(store)) == 2, "Ana's verdict is stored as well")
    (bens, anas) = written(store)
    assert bens[:4] == (case_id, "Ben", "wrong", "seen by Ben")
    assert anas[:4] == (case_id, "Ana", "correct", "seen by Ana")
    assert began < bens[4] < anas[4] < datetime.now(UTC)


def test_verdict_on_an_old_page_is_a_conflict(ana: Page, ben: Page, store: Store, make_case: Make) -> None:
    """A verdict on a case that another labelled unseen is not stored: who, what and when is said, the note stays."""
    ((case_id, question), _) = added(store, make_case(0, question="whose?"), make_case(1, question="next?"))
    sit_down(ana, "Ana")
    write(ana, "seen by Ana")
    sit_down(ben, "Ben", f"/case?case={case_id}", "Case")
    ben.keys("2")
    ben.until(lambda: len(written(store)) == 1, "Ben's verdict is stored")
    ana.keys("1")
    told = r"Ben labelled this case “Wrong” \d+ s ago\. Your “Correct” was not stored"
    ana.until(lambda: re.search(told, notices(ana)) and ana.idle(), "Ana is told")
    assert len(written(store)) == 1
    assert ana.question() == question
    assert [one.get_attribute("value") for one in ana.seen(".st-key-frm-verdicts input")] == ["seen by Ana"]
    ana.keys("1")
    ana.until(lambda: ana.question() == "next?", "Ana overrules and goes on")
    assert [row[:4] for row in written(store)] == [
        (case_id, "Ben", "wrong", ""),
        (case_id, "Ana", "correct", "seen by Ana"),
    ]


def test_case_that_was_just_labelled(ana: Page, ben: Page, store: Store, make_case: Make) -> None:
    """Who opens by its link what another has just labelled is told who did, how and when; the one who did is not."""
    ((case_id, _), _) = added(store, make_case(0, question="whose?"), make_case(1, question="next?"))
    sit_down(ana, "Ana")
    ana.keys("2")
    ana.until(lambda: ana.question() == "next?" and ana.idle(), "Ana goes on")
    assert notices(ana) == ""
    for path, heading in ((f"/queue?case={case_id}", "Review queue"), (f"/case?case={case_id}", "Case")):
        ben.open(path, heading)
        assert re.search(r"Ana labelled this case “Wrong” \d+ s ago\.", notices(ben))
    assert len(written(store)) == 1
