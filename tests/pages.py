"""The dashboard's pages without a browser: a page as a new session sees it, and what it shows."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

from fastrm_monitor import dashboard

APP = Path(dashboard.__file__).with_name("app.py")
NAMES = ("overview", "queue", "case", "health", "calibration")
OVERVIEW, QUEUE, CASE, HEALTH, CALIBRATION = (f"screens/{name}.py" for name in NAMES)


def opened(page: str = "", **parameters: str) -> AppTest:
    """A page as a new session sees it; fails when it shows an error that nobody foresaw."""
    at = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in parameters.items():
        at.query_params[name] = value
    if page:
        at.switch_page(page)
    return ran(at)


def ran(at: AppTest) -> AppTest:
    """Run once more; fails when it shows an error that nobody foresaw."""
    at.run()
    assert [error.value for error in at.exception] == []
    return at


def press(at: AppTest, key: str) -> AppTest:
    """Press a button."""
    at.button(key=key).click()
    return ran(at)


def shown(at: AppTest) -> str:
    """The HTML that the pages make themselves, without their style sheet and scripts."""
    return "\n".join(
        part.proto.body for part in at.get("html") if not part.proto.body.startswith(("<style", "<script"))
    )


def sent(at: AppTest) -> str:
    """Everything that goes to the browser, sidebar included."""
    return "\n".join(str(getattr(part, "proto", "")) for part in at._tree)
