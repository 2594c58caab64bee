"""The dashboard in a real browser: links open, keys work, and the heat lies on the right pixels of what is shown.

One dashboard and one browser serve all tests; the store is emptied before each. Without Chromium and chromedriver the
tests are skipped, or fail where FASTRM_REQUIRE_BROWSER is 1.
"""

from __future__ import annotations

import importlib.util
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import delete, select

from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Case, CasePicture, Review, Traffic
from fastrm_monitor.records.store import Store
from fastrm_monitor.types import WHOLE, Region

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[1] / "docs" / "screenshots.py"
WAIT = 40.0  # seconds; a busy machine is slow

Make = Callable[..., Case]


@pytest.fixture(scope="module")
def shots() -> ModuleType:
    """The module that takes the documentation's pictures: it knows how to start dashboard and browser."""
    try:
        spec = importlib.util.spec_from_file_location("screenshots", SCREENSHOTS)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        missing = "" if module.programs() else "Chromium or chromedriver is not installed"
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed"
    if missing and os.environ.get("FASTRM_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{missing}, and FASTRM_REQUIRE_BROWSER is 1")
    if missing:
        pytest.skip(missing)
    return module


@pytest.fixture(scope="module")
def site(shots: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """The address of a running dashboard, and its store."""
    url = f"sqlite:///{tmp_path_factory.mktemp('browser') / 'store.db'}"
    with Store(url) as opened, shots.dashboard(url) as address:
        yield address, opened


@pytest.fixture(scope="module")
def chromium(shots: ModuleType) -> Iterator[Chrome]:
    with shots.browser("light") as driver:
        yield driver


@pytest.fixture
def store(site: tuple[str, Store]) -> Store:
    """The dashboard's store, empty."""
    with site[1].session(write=True) as session:
        for table in (Review, CasePicture, Case, Traffic):
            session.execute(delete(table))
    return site[1]


class Page:
    """What a person does with the page, and sees there."""

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, path: str, heading: str) -> None:
        self.driver.get(self.address + path)
        self.until(lambda: self.texts(".frm-title h1") == [heading] and self.idle(), f"{path} opens")

    def idle(self) -> bool:
        """Nothing runs, so that everything is there."""
        (app,) = self.find(".stApp")
        return bool(app.get_attribute("data-test-script-state") == "notRunning")

    def settle(self) -> None:
        """Wait until nothing has run for a while, so that what must not come has had its time to come."""
        quiet = time.monotonic()
        end = quiet + WAIT
        while time.monotonic() < quiet + 1.5:
            if not self.idle():
                quiet = time.monotonic()
            assert time.monotonic() < end
            time.sleep(0.1)

    def until(self, true: Callable[[], object], what: str) -> None:
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        try:
            waiting = WebDriverWait(self.driver, WAIT, 0.1, ignored_exceptions=[StaleElementReferenceException])
            waiting.until(lambda driver: true())
        except TimeoutException:
            pytest.fail(f"waited in vain until {what}; the page says: {self.find('body')[0].text}")

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def seen(self, selector: str) -> list[Any]:
        """Streamlit keeps a hidden copy of each button with a tooltip, for touch screens."""
        return [element for element in self.find(selector) if element.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        return [str(element.get_attribute("textContent")) for element in self.find(selector)]

    def keys(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def keys_at_once(self, *keys: str) -> None:
        """Press keys with no time between them for anything to be drawn."""
        press = """for (const key of arguments) for (const kind of ['keydown', 'keyup']) {
            const code = key > '9' ? 'Key' + key.toUpperCase() : 'Digit' + key;
            document.body.dispatchEvent(new KeyboardEvent(kind, {key, code, bubbles: true, cancelable: true}));
        }"""
        self.driver.execute_script(press, *keys)

    def question(self) -> str:
        return "".join(self.texts(".frm-text:not(.frm-answer)"))

    def images(self) -> list[Any]:
        """The pictures of the case that are loaded."""
        loaded = "return arguments[0].complete && arguments[0].naturalWidth > 0"
        found = self.find(".st-key-frm-pictures img")
        return [image for image in found if self.driver.execute_script(loaded, image)]

    def pixels(self) -> np.ndarray:
        """The shown picture, int (h, w, 3), as its address gives it."""
        (image,) = self.images()
        address = str(image.get_attribute("src"))
        assert address.startswith(self.address)
        with urllib.request.urlopen(address, timeout=WAIT) as answer, Image.open(BytesIO(answer.read())) as opened:
            return np.asarray(opened.convert("RGB"), dtype=int)


@pytest.fixture
def page(chromium: Chrome, site: tuple[str, Store], store: Store) -> Page:
    return Page(chromium, site[0])


def added(store: Store, *cases: Case) -> list[tuple[str, str]]:
    """(case id, question) of cases that were put into the store."""
    ids = [(case.case_id, case.question) for case in cases]
    store.add(cases)
    return ids


def reviews(store: Store) -> list[tuple[str, str, str]]:
    """(case id, verdict, note) of every review, oldest first."""
    with store.session() as session:
        query = select(Case.case_id, Review.verdict, Review.note).join(Review.case).order_by(Review.id)
        return [(case_id, verdict, note) for case_id, verdict, note in session.execute(query)]


def grey(
    size: tuple[int, int], region: Region = WHOLE, hot: tuple[int, int] = (1, 2), *, position: int = 0
) -> CasePicture:
    """A grey picture of which one patch of 4 x 4 is hot."""
    buffer = BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(buffer, "PNG")
    values = np.zeros((4, 4), np.float32)
    values[hot] = 1.0
    return CasePicture(
        position=position,
        width=size[0],
        height=size[1],
        content=buffer.getvalue(),
        rows=4,
        columns=4,
        relevance=pack_map(values),
        region=list(region),
    )


# --- links ---------------------------------------------------------------------------------------------------------

HOSTILE = "<script>document.title = 'obeyed'</script><img src=x onerror=\"document.title = 'obeyed'\"> "
ARABIC = "ما لون الحلقة؟"
WRITTEN = "\u202eyes\u200b"


def test_every_case_opens_by_its_link(page: Page, store: Store, make_case: Make) -> None:
    """Whatever kind of case, its link shows its question, its answer and its picture, and obeys nothing in them."""
    hidden = grey((200, 100))
    hidden.content = None
    cases = [
        make_case(0),
        make_case(1, flagged=False, sampled=True, reason=None),
        make_case(2, calibrated=False, reason="high_map_entropy", confidence=None, entropy=None, features={}),
        make_case(3, question=HOSTILE + "hostile?", answer=HOSTILE, model=HOSTILE, reason=HOSTILE[:60]),
        make_case(4, question=ARABIC, answer="two\nlines " * 400),
        make_case(5, pictures=[grey((200, 100)), grey((100, 200), position=1)]),
        make_case(6, pictures=[hidden]),
    ]
    said = {case.case_id: (case.question, case.answer, len(case.pictures)) for case in cases}
    store.add(cases)
    for case_id, (question, answer, pictures) in said.items():
        page.open(f"/case?case={case_id}", "Case")
        page.until(lambda question=question: page.question() == question, f"the question is {question!r}")
        assert page.texts(".frm-answer") == [answer]
        page.until(lambda pictures=pictures: len(page.images()) == pictures, "every picture is loaded")
        assert all("with its heatmap" in str(image.get_attribute("alt")) for image in page.images())
        assert "obeyed" not in page.driver.title


def test_every_case_of_a_demo_run_opens(shots: ModuleType, chromium: Chrome, tmp_path: Path) -> None:
    """Each case that a run of the demo stored opens in the browser with its question, its answer and its picture."""
    from rich.console import Console

    from fastrm_monitor.demo.run import run_demo

    url = run_demo(tmp_path / "demo", 60, Console(file=StringIO()))
    with Store(url) as store, store.session() as session:
        cases = session.execute(select(Case.case_id, Case.question, Case.answer)).all()
        kept = sum(value for (name, _), value in store.totals().items() if name == "stored")
    assert len(cases) == kept > 0
    with shots.dashboard(url) as address:
        page = Page(chromium, address)
        for case_id, question, answer in cases:
            page.open(f"/case?case={case_id}", "Case")
            page.until(lambda question=question: page.question() == question, f"the question is {question!r}")
            assert page.texts(".frm-answer") == [answer]
            page.until(lambda: len(page.images()) == 1, f"the picture of {case_id} is there")


def test_hidden_characters_are_seen(page: Page, store: Store, make_case: Make) -> None:
    """A right-to-left override in an answer is read as its number and turns nothing round."""
    ((case_id, _),) = added(store, make_case(0, answer=WRITTEN))
    page.open(f"/case?case={case_id}", "Case")
    page.until(lambda: page.texts(".frm-answer") == ["U+202EyesU+200B"], "the marks are there")
    left = "return arguments[0].getBoundingClientRect().left"
    first, last = (page.driver.execute_script(left, mark) for mark in page.find(".frm-answer .frm-mark"))
    assert first < last


def test_overview_leads_to_the_case(page: Page, store: Store, make_case: Make) -> None:
    """The overview's newest flagged case is one click away from its page, and the queue from there."""
    added(store, make_case(0), make_case(1, question="is this the newest?"))
    page.open("/", "Overview")
    page.until(lambda: len(page.find(".frm-row")) == 2, "two cases are listed")
    page.find("[data-testid='stMain'] [data-testid='stPageLink'] a")[0].click()
    page.until(lambda: page.question() == "is this the newest?", "the case is open")
    page.find("[data-testid='stMain'] [data-testid='stPageLink'] a")[0].click()
    page.until(lambda: page.texts(".frm-title h1") == ["Review queue"], "the queue is open")


def test_nothing_is_fetched_from_elsewhere(page: Page, store: Store, make_case: Make) -> None:
    """Pages with pictures of users ask nobody but the dashboard itself for anything."""
    added(store, make_case(0))
    for path, heading in (("/", "Overview"), ("/queue", "Review queue")):
        page.open(path, heading)
        names = page.driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert len(names) > 5
        assert [name for name in names if not name.startswith((page.address, "data:", "blob:"))] == []


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(store: Store, make_case: Make) -> list[tuple[str, str]]:
    """(case id, question) of three flagged cases, in the order of the queue."""
    return added(store, *(make_case(number, question=f"question {number}?") for number in range(3)))


def test_verdict_keys(page: Page, store: Store, make_case: Make) -> None:
    """1 2 3 4 give their verdicts, each to the case on the screen, and bring the next one; U takes the last back."""
    cases = added(store, *(make_case(number, question=f"question {number}?") for number in range(5)))
    page.open("/queue", "Review queue")
    expected = []
    for number, verdict in enumerate(("correct", "wrong", "not_grounded", "unsure")):
        page.until(lambda number=number: page.question() == cases[number][1] and page.idle(), f"case {number} is shown")
        page.keys(str(number + 1))
        expected.append((cases[number][0], verdict, ""))
        page.until(lambda: reviews(store) == expected, f"key {number + 1} gives {verdict}")
    page.until(lambda: page.question() == cases[4][1] and page.idle(), "the last case is shown")
    page.keys("u")
    page.until(lambda: page.question() == cases[3][1] and page.idle(), "U brings the last reviewed case back")
    assert reviews(store) == [*expected, (cases[3][0], "undone", "")]


def test_walking_keys(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """N and P walk the queue and write nothing."""
    page.open("/queue", "Review queue")
    for key, number in (("n", 1), ("n", 2), ("p", 1), ("p", 0)):
        page.keys(key)
        page.until(
            lambda number=number: page.question() == three[number][1] and page.idle(), f"{key} leads to {number}"
        )
    assert reviews(store) == []


def test_row_of_the_list_opens_its_case(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """A row that is ticked in the list brings its case to the top; the row of the case at hand is the ticked one."""
    from selenium.webdriver import ActionChains

    page.open("/queue", "Review queue")
    page.until(lambda: page.seen("[data-testid='stDataFrame'] canvas"), "the list is drawn")
    for number in (2, 1):
        (table,) = page.find("[data-testid='stDataFrame']")
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", table)
        canvas = page.seen("[data-testid='stDataFrame'] canvas")[0]
        row_height, half_width, half_height = 35, canvas.size["width"] / 2, canvas.size["height"] / 2
        place = 15 - half_width, row_height * (number + 1.5) - half_height  # below the row of headings
        ActionChains(page.driver).move_to_element_with_offset(canvas, *map(round, place)).click().perform()
        page.until(lambda number=number: page.question() == three[number][1] and page.idle(), f"case {number} is shown")
    assert reviews(store) == []


def test_heatmap_key(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """H hides the heatmap, so that the picture is seen, and brings it back."""

    def described(ending: str) -> bool:
        return [str(image.get_attribute("alt")) for image in page.images()] == [f"The picture with{ending}"]

    page.open("/queue", "Review queue")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    before = page.pixels()
    page.keys("h")
    page.until(lambda: described("out its heatmap."), "the heatmap is hidden")
    page.until(page.idle, "the page is still")
    assert (page.pixels() != before).any()
    page.keys("h")
    page.until(lambda: not described("out its heatmap.") and page.images(), "the heatmap is back")
    page.until(page.idle, "the page is still")
    assert (page.pixels() == before).all()


def test_keys_in_a_note_are_letters(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """What is typed into the note is text and no verdict; the next verdict takes it along."""
    page.open("/queue", "Review queue")
    (note,) = page.seen(".st-key-frm-verdicts input")
    note.send_keys("1 2 phun")
    assert note.get_attribute("value") == "1 2 phun"
    note.send_keys("\ue004")  # tab: out of the field, which hands it over
    page.until(page.idle, "the note is taken")
    assert reviews(store) == []
    assert page.question() == three[0][1]
    page.seen(".st-key-frm-verdicts button")[1].click()
    page.until(lambda: reviews(store) == [(three[0][0], "wrong", "1 2 phun")], "the verdict has the note")


def test_key_pressed_twice_labels_one_case(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """A second press before the next case is on the screen does not label it unseen, and is no conflict."""
    page.open("/queue", "Review queue")
    page.keys_at_once("1", "1")
    page.until(lambda: page.question() == three[1][1], "the next case is shown")
    page.settle()
    assert page.question() == three[1][1]
    assert reviews(store) == [(three[0][0], "correct", "")]
    assert page.find(".frm-notice") == []


def test_two_keys_at_once_are_one_verdict(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """Of two different verdicts before the next case is on the screen the first counts, and the reviewer is told."""
    page.open("/queue", "Review queue")
    said = "You had just labelled that case “Correct”, so “Wrong” was not stored"
    page.keys_at_once("1", "2")
    page.until(lambda: said in "".join(page.texts(".frm-notice")), "the reviewer is told")
    page.settle()
    assert reviews(store) == [(three[0][0], "correct", "")]
    assert page.question() == three[1][1]


def test_hasty_keys_label_each_case_once(page: Page, store: Store, make_case: Make) -> None:
    """Verdict keys that are pressed while the page still draws never bring a labelled case back."""
    cases = added(store, *(make_case(number, question=f"question {number}?") for number in range(20)))
    page.open("/queue", "Review queue")
    page.settle()
    for _ in range(12):
        page.keys("1")
        time.sleep(0.25)
    page.settle()
    found = [case_id for case_id, *_ in reviews(store)]
    assert len(found) > 1
    assert found == [case_id for case_id, _ in cases[: len(found)]]
    assert page.question() == cases[len(found)][1]


def test_undo_pressed_twice_takes_one_back(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """A second U before the reopened case is on the screen does not reopen another one unseen."""
    page.open("/queue", "Review queue")
    for number in (0, 1):
        page.until(lambda number=number: page.question() == three[number][1] and page.idle(), f"case {number} is shown")
        page.keys("1")
    page.until(lambda: page.question() == three[2][1] and page.idle(), "the last case is shown")
    page.keys_at_once("u", "u")
    page.until(lambda: page.question() == three[1][1], "the reopened case is shown")
    page.settle()
    assert page.question() == three[1][1]
    assert [verdict for _, verdict, _ in reviews(store)] == ["correct", "correct", "undone"]


def test_another_reviewer_was_first(page: Page, store: Store, three: list[tuple[str, str]]) -> None:
    """A key on a case that changed meanwhile writes nothing and says who was first."""
    page.open("/queue", "Review queue")
    store.review(three[0][0], "correct", "Ben")
    page.keys("2")
    page.until(lambda: "Ben" in "".join(page.texts(".frm-notice[role=alert]")), "the notice is there")
    assert reviews(store) == [(three[0][0], "correct", "")]


# --- what is seen --------------------------------------------------------------------------------------------------

# (picture's size, region of the 4 x 4 grid, hot (row, column), where its patch is, as shares of the picture)
PLACES: dict[str, tuple[tuple[int, int], Region, tuple[int, int], tuple[float, float, float, float]]] = {
    "square": ((64, 64), WHOLE, (1, 2), (0.5, 0.25, 0.75, 0.5)),
    "wide, centre crop": ((200, 100), (0.25, 0.0, 0.75, 1.0), (0, 3), (0.625, 0.0, 0.75, 0.25)),
    "tall, centre crop": ((100, 200), (0.0, 0.25, 1.0, 0.75), (3, 0), (0.0, 0.625, 0.25, 0.75)),
    "wide, padded": ((200, 100), (0.0, -0.5, 1.0, 1.5), (1, 0), (0.0, 0.0, 0.25, 0.5)),
}


@pytest.mark.parametrize("name", PLACES)
def test_heat_lies_on_its_pixels(page: Page, store: Store, make_case: Make, name: str) -> None:
    """In the picture that the browser shows, smooth or in patches, the hot pixels are those of the hot patch."""
    size, region, hot, shares = PLACES[name]
    ((case_id, _),) = added(store, make_case(0, pictures=[grey(size, region, hot)]))
    page.open(f"/case?case={case_id}", "Case")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    smooth = page.pixels()
    source = page.images()[0].get_attribute("src")
    page.find(".st-key-patches label")[0].click()
    page.until(lambda: [one for one in page.images() if one.get_attribute("src") != source], "patches are drawn")
    page.until(page.idle, "the page is still")
    patches = page.pixels()

    height, width = patches.shape[:2]
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
    box = page.driver.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return [box.width, box.height]", page.images()[0]
    )
    assert box[0] / box[1] == pytest.approx(width / height, rel=0.01)

    expected = np.multiply(shares, (width, height, width, height))
    ys, xs = np.nonzero(_warmth(patches) > 30)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx(expected, abs=3)  # a frame takes two
    assert len(xs) > 0.8 * (expected[2] - expected[0]) * (expected[3] - expected[1])  # the outline takes some
    warmth = _warmth(smooth)
    inside = warmth[round(expected[1]) : round(expected[3]), round(expected[0]) : round(expected[2])]
    assert inside.sum() > 0.6 * warmth.sum()


def _warmth(pixels: np.ndarray) -> np.ndarray:
    """How yellow each pixel is: 0 for picture and frame, which are grey, high under the heat; int (h, w)."""
    return np.maximum(pixels[..., 0] - pixels[..., 2], 0)


def numbered(size: tuple[int, int], region: Region) -> CasePicture:
    """A grey picture of 4 x 4 patches, the relevance of each of which is its number in reading order over 20."""
    picture = grey(size, region)
    picture.relevance = pack_map(np.arange(16, dtype=np.float32).reshape(4, 4) / 20)
    return picture


POINTED = """
const [x, y] = arguments;
const mark = document.querySelector('.frm-grid i'), box = mark.getBoundingClientRect();
if (mark.hidden) return null;
return [box.left <= x && x <= box.right && box.top <= y && y <= box.bottom, getComputedStyle(mark, '::after').content];
"""


@pytest.mark.parametrize("name", PLACES)
def test_value_under_the_pointer(page: Page, store: Store, make_case: Make, name: str) -> None:
    """Wherever the pointer is on the picture, the page says the value of the patch there, and nothing beside the grid.

    Also a pixel and a half from the edges of the patches.
    """
    size, region, _, _ = PLACES[name]
    ((case_id, _),) = added(store, make_case(0, pictures=[numbered(size, region)]))
    page.open(f"/case?case={case_id}", "Case")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    left, top, width, height = box_of(page, page.images()[0])
    for across, down in ((0.02, 0.02), (0.3, 0.3), (0.6, 0.4), (0.97, 0.96), (0.25, 0.5), (0.5, 0.75), (0.75, 0.25)):
        for nudge in (-1.5, 1.5):
            x, y = round(left + across * width + nudge), round(top + down * height + nudge)
            move_to(page, x, y)
            place = (x + 0.5 - left) / width, (y + 0.5 - top) / height
            column = 4 * (place[0] - region[0]) / (region[2] - region[0])
            row = 4 * (place[1] - region[1]) / (region[3] - region[1])
            inside = 0 <= column < 4 and 0 <= row < 4
            said = page.driver.execute_script(POINTED, x, y)
            expected = [True, f'"{(4 * int(row) + int(column)) / 20:.2f}"'] if inside else None
            assert said == expected, (x, y)


def test_values_by_keyboard(page: Page, store: Store, make_case: Make) -> None:
    """The tab key reaches the heatmap, the arrow keys go from patch to patch, and each value is seen and told."""
    ((case_id, _),) = added(store, make_case(0, pictures=[numbered((200, 100), WHOLE)]))
    page.open(f"/case?case={case_id}", "Case")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    focused = "return document.activeElement.className"
    for _ in range(40):
        page.keys("\ue004")
        if page.driver.execute_script(focused) == "frm-grid":
            break
    said = ["0.75 in row 4 of 4, column 4 of 4"]  # the highest value is where one begins
    assert page.texts(".frm-grid output") == said
    for key, value in (("\ue012", "0.70"), ("\ue013", "0.50"), ("\ue014", "0.55"), ("\ue015", "0.75")):
        page.keys(key)
        assert page.texts(".frm-grid output")[0].startswith(value)
        assert page.find(".frm-grid i")[0].get_attribute("data-value") == value
    page.keys("\ue015")  # at the edge one stays
    assert page.texts(".frm-grid output") == said
    page.keys("\ue004")
    assert not page.seen(".frm-grid i")


def move_to(page: Page, x: int, y: int) -> None:
    """Put the pointer on a place of the window."""
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})


def box_of(page: Page, element: Any) -> tuple[float, float, float, float]:
    """(left, top, width, height) in the window."""
    script = "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    left, top, width, height = page.driver.execute_script(script, element)
    return left, top, width, height


@pytest.mark.parametrize(("window", "least"), [((1280, 800), 400), ((620, 800), 200), ((2560, 1440), 600)])
def test_values_lie_over_the_picture(
    page: Page, store: Store, make_case: Make, window: tuple[int, int], least: int
) -> None:
    """The patches to be pointed at cover the picture exactly, which is smaller in a narrow window, larger in a wide."""
    ((case_id, _),) = added(store, make_case(0, pictures=[numbered((200, 100), WHOLE)]))
    metrics = {"deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": window[0], "height": window[1], **metrics}
    )
    try:
        page.open(f"/case?case={case_id}", "Case")
        page.until(lambda: len(page.images()) == 1, "the picture is loaded")
        (over,) = page.find(".frm-grid")
        picture = box_of(page, page.images()[0])
        assert box_of(page, over) == pytest.approx(picture, abs=0.6)
        assert picture[2] >= least
    finally:
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 800, **metrics})


@pytest.mark.parametrize("name", PLACES)
def test_outline_on_the_screen(page: Page, store: Store, make_case: Make, name: str) -> None:
    """On the screen the hot patch is warm to its edges, with a dark and a light line along them, and nothing beyond."""
    size, region, hot, shares = PLACES[name]
    ((case_id, _),) = added(store, make_case(0, pictures=[grey(size, region, hot)]))
    page.open(f"/case?case={case_id}", "Case")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    source = page.images()[0].get_attribute("src")
    page.find(".st-key-patches label")[0].click()
    page.until(lambda: [one for one in page.images() if one.get_attribute("src") != source], "patches are drawn")
    page.until(page.idle, "the page is still")
    move_to(page, 1, 1)
    left, top, width, height = box_of(page, page.images()[0])
    with Image.open(BytesIO(page.driver.get_screenshot_as_png())) as opened:
        screen = np.asarray(opened.convert("RGB"), dtype=int)
    start, end = round(left + shares[0] * width), round(left + shares[2] * width)
    row = screen[round(top + height * (shares[1] + shares[3]) / 2), start - 4 : end + 4]
    assert (_warmth(row)[8:-8] > 30).all()
    beyond = [row[:3], row[-3:]]
    for pixels, inside in zip(beyond, (shares[0] > 0, shares[2] < 1), strict=True):
        if inside:  # else the picture ends here
            assert (_warmth(pixels) < 10).all()
    for edge in (row[2:8], row[-8:-2]):
        lightness = edge.sum(axis=1)  # blended where the picture begins in the middle of a pixel; the picture has 384
        assert lightness.min() < 340
        assert lightness.max() > 600


LONG = "Which of the objects at the left of the red ring, if any, has the same colour as the cross? " * 8


@pytest.mark.parametrize("size", [(64, 64), (200, 100), (100, 400)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("question", ["what colour is the ring?", LONG], ids=["short", "long"])
def test_a_reviewer_need_not_scroll(
    page: Page, store: Store, make_case: Make, size: tuple[int, int], question: str
) -> None:
    """At 1280 x 800 picture, question, answer, confidence, reason and verdicts are in sight, long texts included."""
    added(store, make_case(0, question=question, answer=question, pictures=[grey(size)]))
    page.open("/queue", "Review queue")
    page.until(lambda: len(page.images()) == 1, "the picture is loaded")
    selectors = (".st-key-frm-pictures img", ".frm-legend", ".frm-confidence", ".frm-why", ".frm-text", ".frm-answer")
    parts = [part for selector in (*selectors, ".st-key-frm-verdicts button") for part in page.seen(selector)]
    assert len(parts) == 6 + 1 + 10  # question and answer are both texts; four verdicts, five tags and undo
    edges = "const box = arguments[0].getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]"
    for part in parts:
        left, top, right, bottom = page.driver.execute_script(edges, part)
        assert left >= 0
        assert top >= 0
        assert right <= 1280
        assert bottom <= 800, part.get_attribute("outerHTML")
    wider = "const all = document.documentElement; return all.scrollWidth - all.clientWidth"
    assert page.driver.execute_script(wider) == 0
