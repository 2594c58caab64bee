"""How long a reviewer waits for the next case: a scripted one in a real Chromium, keyboard only: `make reviewer`.

    python benchmarks/reviewer.py --cases 100000 --postgres 1000000 --output docs/results/reviewer.md
    python benchmarks/reviewer.py --url sqlite:///FILE                  # a store as it is

Fills a store with `big_store.fill`, gives the cases at the front of the queue pictures and maps of a real size, each
its own, starts the dashboard on a free port and labels one case after the other. The wait is measured inside the page:
from the time stamp of the key's event to the second frame after the next case's picture is decoded. The page also notes
what the time went into, and timers around the dashboard's functions say the same of the server. A bare Streamlit
fragment that shows a number is measured in the same way. Ends with 1 when the median is above the limit.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from PIL import Image
from sqlalchemy import func, select, update

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import screenshots
from big_store import fill
from report import Report
from store import stores

from fastrm_monitor.dashboard import queries
from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Case, CasePicture, Review
from fastrm_monitor.records.store import Store

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

LIMIT = 400.0  # milliseconds
SIDE, GRID = 336, 24  # of a picture and of its map, as of LLaVA-1.5
KEYS = {"1": "correct", "2": "wrong", "3": "not_grounded", "4": "unsure"}
TURN = "1112112131214112"  # the keys that the reviewer presses, over and over
WARM = 5  # cases before it is measured
RUN = "a run of the script"
TIMERS = "FASTRM_REVIEWER_TIMERS"  # the file that a timed server writes to

WATCH = """
(() => {
  const seen = window.frmSeen = {next: null, steps: [], waiting: null};
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...all) {
      super(...all);
      this.addEventListener('message', event => {
        const step = seen.next;
        if (!step) return;
        step.first ??= performance.now();
        step.bytes += event.data.byteLength ?? event.data.size ?? 0;
      });
    }
    send(data) { if (seen.next) seen.next.sent ??= performance.now(); super.send(data); }
  };
  const frame = () => new Promise(requestAnimationFrame);
  const check = () => {
    const step = seen.next;
    if (!step || step.shown) return;
    const now = seen.state();
    if (!now || now.id === step.id || (now.image && now.image === step.image)) return;
    step.shown = performance.now();
    (async () => {
      const image = seen.picture();
      if (image) { await image.decode(); step.decoded = performance.now(); }
      await frame(); await frame();
      step.painted = performance.now();
      step.after = now.id;
      seen.steps.push(step);
      seen.next = null;
      seen.waiting?.(step);
    })();
  };
  seen.picture = () => document.querySelector('.st-key-frm-pictures img');
  seen.state = () => {
    const count = document.querySelector('.frm-bare');
    if (count) return {id: count.textContent, image: null};
    const button = document.querySelector('[class*="st-key-verdict-correct-"]'), image = seen.picture();
    const id = button && /st-key-verdict-correct-(\\S+)/.exec(button.className)[1];
    return id && image ? {id, image: image.src} : null;
  };
  addEventListener('keydown', event => {
    const now = seen.state();
    if (now && event.isTrusted) seen.next = {...now, key: event.key, at: event.timeStamp, bytes: 0};
  }, true);
  const everything = {subtree: true, childList: true, attributes: true, characterData: true};
  new MutationObserver(check).observe(document, everything);
})();
"""
"""Put into the page before anything else: what happens between a key and the next case, on the page's own clock."""

BARE = """
import streamlit as st


@st.fragment
def desk():
    def on():
        st.session_state["n"] = st.session_state.get("n", 0) + 1

    st.button("Next", shortcut="1", on_click=on)
    st.html(f'<div class="frm-title"><h1 class="frm-bare">{st.session_state.get("n", 0)}</h1></div>')


desk()
"""

Step = dict[str, Any]


# --- the store -------------------------------------------------------------------------------------------------------


def furnish(store: Store, count: int) -> None:
    """Give the first `count` cases of the queue pictures and maps of a real size, each its own."""
    rng = np.random.default_rng(1)
    with store.session() as session:
        ids = [row.case_id for row in queries.rows(session, queries.Queue(), count)]
    with store.session(write=True) as session:
        keys = session.scalars(select(Case.id).where(Case.case_id.in_(ids)))
        for key in list(keys):
            coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3)).astype(np.uint8))
            pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
            noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
            buffer = BytesIO()
            Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
            values = pack_map(rng.beta(0.4, 3, (GRID, GRID)).astype(np.float32))
            session.execute(
                update(CasePicture)
                .where(CasePicture.case_key == key)
                .values(width=SIDE, height=SIDE, content=buffer.getvalue(), rows=GRID, columns=GRID, relevance=values)
            )


def newest(store: Store) -> int:
    """The id of the newest review; 0 when there is none."""
    with store.session() as session:
        return session.scalar(select(func.max(Review.id))) or 0


def labelled(store: Store, after: int) -> list[tuple[str, str]]:
    """(case id, verdict) of the reviews after that one, oldest first."""
    with store.session() as session:
        query = select(Case.case_id, Review.verdict).join(Review.case).where(Review.id > after).order_by(Review.id)
        return [(case_id, verdict) for case_id, verdict in session.execute(query)]


# --- the reviewer ----------------------------------------------------------------------------------------------------


def watched(driver: Chrome, address: str) -> None:
    """Open a page that notes what happens in it."""
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    driver.set_script_timeout(screenshots.WAIT)
    driver.get(address)
    screenshots.settle(driver)


def press(driver: Chrome, key: str) -> Step:
    """Press a key, and return what the page noted once the next case is painted."""
    code = {"key": key, "code": f"Digit{key}", "windowsVirtualKeyCode": ord(key), "text": key}
    before = driver.execute_script("return frmSeen.steps.length")
    driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", **code})
    driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", **code})
    wait = """const [before, done] = arguments;
        if (frmSeen.steps.length > before) done(frmSeen.steps[before]); else frmSeen.waiting = done;"""
    step: Step = driver.execute_async_script(wait, before)
    return step


def reviewed(driver: Chrome, keys: Sequence[str], pause: float) -> list[Step]:
    """Press keys one after the other, each `pause` seconds after the case before it was seen."""
    steps = []
    for key in keys:
        steps.append(press(driver, key))
        time.sleep(pause)
    return steps


def waits(steps: Sequence[Step], begin: str = "at", end: str = "painted") -> list[float]:
    """Milliseconds between two of the things that the page noted; steps that lack one are left out."""
    return [step[end] - step[begin] for step in steps if step.get(begin) and step.get(end)]


def spread(values: Sequence[float]) -> list[str]:
    """Median, 90th and 99th percentile, largest."""
    if not values:
        return ["-"] * 4
    return [f"{value:.0f}" for value in (*np.percentile(values, (50, 90, 99)), max(values))]


# --- the server's side -----------------------------------------------------------------------------------------------


def timed(name: str, function: Callable[..., Any], to: Path) -> Callable[..., Any]:
    """The same function, which notes how long it took, as a line of a file."""

    @functools.wraps(function)
    def run(*given: Any, **named: Any) -> Any:
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*given, **named)
        finally:
            took = [name, 1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - cpu)]
            with to.open("a", encoding="utf-8") as file:
                file.write(json.dumps(took) + "\n")

    return run


def serve_timed(arguments: list[str]) -> None:
    """The Streamlit process, with timers around what a key sets off."""
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.web import cli

    from fastrm_monitor.dashboard import pictures, review, seat

    parts: dict[str, tuple[Any, str]] = {
        RUN: (ScriptRunner, "_run_script"),
        "write the review": (Store, "review"),
        "find and claim the next case": (seat, "walk"),
        "of which claim": (seat.Seat, "take"),
        "read a case": (queries, "case"),
        "its place, neighbours and counts": (queries, "place"),
        "rows of the list": (queries, "rows"),
        "picture and controls": (pictures, "panel"),
        "of which picture and values": (pictures, "show"),
        "verdicts, tags, note": (review, "buttons"),
    }
    to = Path(os.environ[TIMERS])
    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, timed(name, getattr(owner, attribute), to))
    sys.argv = arguments
    cli.main()


def timers(file: Path, after: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each call, and of the processor in it, by name; of the lines of the file after that many."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[after:]:
        name, took, cpu = json.loads(line)
        found.setdefault(name, []).append((took, cpu))
    return found


@contextmanager
def running(url: str, change: Callable[[list[str]], list[str]], **settings: str) -> Iterator[str]:
    """The address of a dashboard over a store, whose command line is changed."""
    original = screenshots.command
    with (
        mock.patch.object(screenshots, "command", lambda *given: change(original(*given))),
        screenshots.dashboard(url, **settings) as address,
    ):
        yield address


# --- the report ------------------------------------------------------------------------------------------------------


def measure(report: Report, title: str, url: str, arguments: argparse.Namespace, folder: Path) -> bool:
    """Label, and print how long each wait was; whether the median is below the limit and each case labelled once."""
    count: int = arguments.count
    file = folder / "timers"
    file.write_text("", encoding="utf-8")
    keys = [TURN[number % len(TURN)] for number in range(count)]
    with Store(url) as store:
        furnish(store, count + arguments.unpaused + 20)
        before = newest(store)
        with (
            running(url, lambda line: [line[0], __file__, "--timed", *line[2:]], **{TIMERS: str(file)}) as address,
            screenshots.browser("light") as driver,
        ):
            watched(driver, f"{address}/queue")
            reviewed(driver, keys[:WARM], arguments.pause)
            warm = len(file.read_text(encoding="utf-8").splitlines())
            steps = reviewed(driver, keys, arguments.pause)
            server = timers(file, warm)
            hurried = reviewed(driver, keys[: arguments.unpaused], 0.0)
        pairs = labelled(store, before)
    expected = [KEYS[key] for key in (*keys[:WARM], *keys, *keys[: arguments.unpaused])]
    once = len({case_id for case_id, _ in pairs}) == len(pairs) == len(expected)
    as_pressed = [verdict for _, verdict in pairs] == expected

    report.table(
        f"{title}: from the key to the next case painted, ms",
        ("", "cases", "median", "90 %", "99 %", "slowest"),
        [
            [f"a case every {arguments.pause:g} s and the wait", str(len(steps)), *spread(waits(steps))],
            *[
                [f"of these, {verdict}", str(len(some)), *spread(waits(some))]
                for key, verdict in KEYS.items()
                if (some := [step for step in steps if step["key"] == key])
            ],
            *([["the next key at once", str(len(hurried)), *spread(waits(hurried))]] if hurried else []),
        ],
    )
    phases = (("key to request sent", "at", "sent"), ("to the first answer", "sent", "first"))
    phases += (("to the next case in the page", "first", "shown"), ("to its picture decoded", "shown", "decoded"))
    phases += (("to the second frame", "decoded", "painted"),)
    report.table(
        f"{title}: where the page's time goes, ms",
        ("", "median", "90 %", "99 %", "slowest"),
        [[name, *spread(waits(steps, begin, end))] for name, begin, end in phases],
    )
    report.table(
        f"{title}: where the server's time goes, ms a call",
        ("", "calls a case", "processor, median", "median", "90 %", "99 %", "slowest"),
        [
            [
                name,
                f"{len(took) / len(steps):.1f}",
                f"{statistics.median(cpu for _, cpu in took):.0f}",
                *spread([wall for wall, _ in took]),
            ]
            for name, took in server.items()
        ],
    )
    size = statistics.median(step["bytes"] for step in steps) / 1000
    report.line(
        f"{len(pairs)} reviews of {len({case_id for case_id, _ in pairs})} distinct cases are in the store for "
        f"{len(expected)} keys ({WARM} to warm up); "
        + ("each is that of its key. " if as_pressed else "NOT each is that of its key. ")
        + f"Until the next case is painted {size:.0f} kB come through the socket (median)."
    )
    return bool(waits(steps)) and statistics.median(waits(steps)) < LIMIT and once and as_pressed


def load() -> str:
    """How busy the machine is: beyond its processors, others make the reviewer wait."""
    return f"Load average of the last five minutes: {os.getloadavg()[1]:.1f}; processors: {os.cpu_count()}."


def yardstick(report: Report, count: int, folder: Path) -> None:
    """The same for a page that shows a number."""
    script = folder / "bare.py"
    script.write_text(BARE, encoding="utf-8")
    with (
        running("sqlite:///none.db", lambda line: [*line[:4], str(script), *line[5:]]) as address,
        screenshots.browser("light") as driver,
    ):
        watched(driver, address)
        reviewed(driver, "1" * WARM, 0.1)
        steps = reviewed(driver, "1" * count, 0.1)
    report.table(
        "A bare Streamlit fragment that shows a number, ms",
        ("", "keys", "median", "90 %", "99 %", "slowest"),
        [["from the key to the next number painted", str(len(steps)), *spread(waits(steps))]],
    )
    report.line(load())


def main() -> None:
    """Fill, label, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="to fill an SQLite store with; 0 for none")
    parser.add_argument("--postgres", type=int, default=0, help="to fill a PostgreSQL server of its own with")
    parser.add_argument("--url", help="label this store instead; pictures at the front of its queue are changed")
    parser.add_argument("--count", type=int, default=200, help="cases to label")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between seeing a case and the next key")
    parser.add_argument("--unpaused", type=int, default=50, help="cases to label after those without a pause")
    parser.add_argument("--output", type=Path, help="write the same as markdown")
    if sys.argv[1:2] == ["--timed"]:
        serve_timed(sys.argv[2:])
        return
    arguments = parser.parse_args()
    if screenshots.programs() is None:
        parser.error("Chromium or chromedriver is missing; install both")
    report = Report(140, "# What a reviewer waits for the next case")
    report.line(
        f"Printed by `make reviewer` on {platform.machine()} with {os.cpu_count()} processors, which server, database, "
        "browser and reviewer share. A wait runs on the page's clock from the key's time stamp to the second frame "
        f"after the next case's picture is decoded. The limit is a median of {LIMIT:.0f} ms."
    )
    chosen = argparse.Namespace(
        url=arguments.url,
        sqlite=arguments.cases,
        postgresql=arguments.postgres,
    )
    right = True
    with tempfile.TemporaryDirectory() as folder:
        yardstick(report, 50, Path(folder))
        for title, url, count in stores(chosen, Path(folder)):
            if count:
                fill(url, count)
            right = measure(report, title, url, arguments, Path(folder)) and right
    report.end(arguments.output)
    sys.exit(not right)


if __name__ == "__main__":
    main()
