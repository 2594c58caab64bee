"""Takes the pictures of the documentation: the dashboard over a store, in a real browser.

    python docs/screenshots.py sqlite:///fastrm-demo/fastrm.db

Starts the dashboard on a free port, takes PAGE.png and PAGE-dark.png of every page at 1280 x 800, with a palette of 256
colours so that they stay small, and stops it. `--only calibration` takes that page alone, of a store with labels. Needs
Chromium, chromedriver and selenium; tells no store from another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from fastrm_monitor.dashboard import queries
from fastrm_monitor.dashboard.serve import command
from fastrm_monitor.records.store import Store

SIZE = (1280, 800)
WAIT = 40.0  # seconds
PAGES = {
    "overview": "/",
    "queue": "/queue",
    "case": "/case?case={case}",
    "calibration": "/calibration?at-risk=10",
    "health": "/health",
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="SQLAlchemy URL of the store, with at least one flagged case")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    parser.add_argument("--only", action="append", choices=PAGES, help="take this page, and no other that is not named")
    arguments = parser.parse_args()
    with Store(arguments.store) as store, store.session() as session:
        first = queries.first(session, queries.Queue())
        # Not the one that the queue shows: that is taken, and the page would say so.
        case_id = first and queries.step(session, queries.Queue(), first, forward=True)
    if case_id is None:
        parser.error("the store needs two open flagged cases to show")
    paths = {name: path.format(case=case_id) for name, path in PAGES.items() if name in (arguments.only or PAGES)}
    with dashboard(arguments.store) as url:
        for scheme in ("light", "dark"):
            with browser(scheme) as driver:
                for page, path in paths.items():
                    driver.get(url + path)
                    settle(driver)
                    name = page if scheme == "light" else f"{page}-{scheme}"
                    take(driver, arguments.output / f"{name}.png")


def take(driver: webdriver.Chrome, path: Path) -> None:
    """Write what is seen as a small PNG."""
    with Image.open(BytesIO(driver.get_screenshot_as_png())) as seen:
        seen.convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def dashboard(store_url: str, *, port: int | None = None, auth: Path | None = None, **settings: str) -> Iterator[str]:
    """The dashboard's address while it runs over a store, on a free port unless one is named; see `serve`."""
    port = port or free_port()
    environment = {**os.environ, "FASTRM_STORE": store_url, **settings, **({"FASTRM_AUTH": str(auth)} if auth else {})}
    started = command("127.0.0.1", port, auth)
    process = subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + WAIT
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit("the dashboard did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):  # noqa: S310 - our own address
            return True
    except OSError:
        return False


def programs() -> tuple[str, str] | None:
    """The paths of Chromium and chromedriver; None when one of them is missing."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@contextmanager
def browser(scheme: str) -> Iterator[webdriver.Chrome]:
    """A fresh headless Chromium that prefers the colour scheme "light" or "dark"."""
    found = programs()
    if found is None:
        sys.exit("Chromium or chromedriver is missing; install both")
    options = Options()
    options.binary_location = found[0]
    profile = tempfile.mkdtemp(prefix="fastrm-shots-")
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, Service(found[1]))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False},
        )
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def settle(driver: webdriver.Chrome) -> None:
    """Wait until the page has its heading, nothing runs and everything is drawn."""
    wait = WebDriverWait(driver, WAIT)
    wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, ".frm-title h1"))
    wait.until(
        lambda d: d.find_element(By.CSS_SELECTOR, ".stApp").get_attribute("data-test-script-state") == "notRunning"
    )
    time.sleep(1.5)  # charts and pictures are drawn after the script has ended


if __name__ == "__main__":
    main()
