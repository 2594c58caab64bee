"""What the fuzzing shares: its budget, hostile values and bytes, and a world in which all that runs touch is seen."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from fastrm_monitor.demo import MODEL_FOLDER, PROXY_FOLDER

THOROUGH = os.environ.get("FASTRM_FUZZ") == "thorough"
"""Whether this is `make fuzz`: many inputs, others each time. Else few, and the same each time: a commit that changes
nothing here must not fail here."""

WIDTH = 16
"""Of the proxy's hidden states."""

TALLY: Counter[str] = Counter()
"""Inputs so far, by target."""


def budget(few: int, many: int) -> settings:
    """`few` inputs in `make test`, `many` in `make fuzz`."""
    return settings(
        max_examples=many if THOROUGH else few,
        deadline=None,
        derandomize=not THOROUGH,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # files are too long to be made small in good time
        suppress_health_check=list(HealthCheck),
    )


# --- values --------------------------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "-", "--", ".", "..", "/", "~", "~/x", "~nobody/x", "%s%n", "{0}", "{x.__class__}", "[red]", "[/]",
    "[/red]",
    "[link=x]", "<script>alert(1)</script>", "' OR 1=1 --", "'; DROP TABLE cases; --", "\u202eevil", "\u200b", "\ufeff",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "a\nb", "a\rb", "a\tb", "\x1b[31m", "\x07",
    "\udcff", "caf\u00e9", "cafe\u0301", "x" * 300, "x/" * 200, "x" * 5000, "null", "true", "NaN", "../../etc/passwd",
    "/etc/passwd", "C:\\x", "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:1/", "$(id)", "`id`", "a,b", ",",
    "=", "a=b", "@file",
)  # fmt: skip
"""Words that software has stumbled over."""

NUMBERS = (
    "0", "1", "-1", "2", "0.5", "1.0", "1e309", "-1e309", "1e-400", "nan", "inf", "-inf", "1_0", "0x10", "\uff19",
    "99999999999999999999", "9" * 5000, "1,5", "+1", " 1", "", "1e3",
)  # fmt: skip

texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
words = (texts | st.sampled_from(NUMBERS)).map(lambda word: word.replace("\0", ""))
"""What a shell can hand over: no NUL; bytes that are no UTF-8 come as U+DCxx."""

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([10**9, 2**31, 2**63, 10**12, 10**400, -(10**12)])
    | st.floats()
    | st.sampled_from([float("nan"), float("inf"), -0.0, 1e308, 5e-324, 0.3, 64.0])
    | texts
)
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON, as Python writes it, can hold."""


def spoil(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with anything in some place of it, with that place left out, twice, or under another name."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 7)) == 0:
        return draw(values)
    made = value.copy()
    key = draw(st.sampled_from(sorted(made) if isinstance(made, dict) else range(len(made))))
    what = draw(st.integers(0, 9))
    if what == 0:
        del made[key]
    elif what == 1 and isinstance(made, list):
        made.append(made[key])
    elif what == 1:
        made[draw(texts)] = made[key]
    else:
        made[key] = spoil(made[key], draw)
    return made


def spoil_bytes(content: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """The bytes cut off, lengthened, changed in some place, or as another program would have written them."""
    at = draw(st.integers(0, len(content)))
    what = draw(st.integers(0, 9))
    changed = {
        0: lambda: content[:at],
        1: lambda: content + draw(st.binary(max_size=20)),
        2: lambda: content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :],
        3: lambda: b"\xef\xbb\xbf" + content,
        4: lambda: content[:at] + b"\xff\xc0\x80" + content[at:],
        5: lambda: content.decode("utf-8", "replace").encode("utf-16", "replace"),
        6: lambda: content[:at] + b"[" * 100_000 + content[at:],
        7: lambda: content[:at] + b"9" * 5000 + content[at:],
        8: lambda: content.replace(b"\n", b"\r"),
        9: lambda: content[:at] + content,
    }
    return changed[what]()


# --- what a run touches --------------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    f"os.{name}"
    for name in ("mkdir", "rename", "remove", "rmdir", "symlink", "link", "truncate", "chmod", "chown", "utime")
)
_watch: tuple[Path, list[str]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is None or (event != "open" and event not in _CHANGES):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return
    folder, strayed = _watch
    touched = arguments[:2] if event in ("os.rename", "os.symlink", "os.link") else arguments[:1]
    for one in touched[1:] if event == "os.symlink" else touched:
        if isinstance(one, str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(one))
            if not f"{path}{os.sep}".startswith((f"{folder}{os.sep}", "/dev/", "/proc/")) and "__pycache__" not in path:
                strayed.append(f"{event} {path}")


sys.addaudithook(_audit)  # for good: there is no taking it away, so it looks at `_watch`


@dataclass(frozen=True)
class World:
    """A folder that runs are given, made anew for each, among things that none of them may change.

    Attributes:
        work: the folder of a run.
        template: what lies in it at first.
        outside: a neighbour with things that are worth stealing or spoiling.
        home: the user's.
    """

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def template(self) -> Path:
        return self.root / "template"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @classmethod
    def made(cls, root: Path) -> World:
        """With nothing in the template yet."""
        world = cls(root.resolve())
        for folder in (world.template, world.outside, world.home):
            folder.mkdir(parents=True)
        (world.outside / "secret.txt").write_text("s3cret that is nobody's business")
        (world.home / ".profile").write_text("# mine")
        return world

    def fresh(self) -> Path:
        """The run's folder as the template has it."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work, symlinks=True)
        return self.work

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Fails when what runs inside changes anything but the run's folder.

        Looks at what surrounds the folder and at what the package ships (names, sizes, times, modes), and for calls of
        Python anywhere on the machine.
        """
        global _watch
        before, strayed = self._surroundings(), list[str]()
        _watch = self.work, strayed
        try:
            yield
        finally:
            _watch = None
        assert not strayed, strayed
        after = self._surroundings()
        assert after == before, set(after.items()) ^ set(before.items())

    def _surroundings(self) -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        folders = [str(one) for one in (self.root, MODEL_FOLDER, PROXY_FOLDER)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.path == str(self.work):
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    found[entry.path] = facts.st_size, facts.st_mtime_ns, facts.st_mode
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        return found


@contextmanager
def memory(size: int) -> Iterator[None]:
    """Lets the process have so many bytes more than it has; what asks for more fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --- what a run says -----------------------------------------------------------------------------------------------


def check_sentence(said: str) -> None:
    """One sentence on one line, short enough to be read."""
    assert said.endswith("."), said
    assert "\n" not in said, said
    assert "Traceback" not in said, said
    assert len(said) < 6000, len(said)


def check_output(code: object, out: str, err: str) -> None:
    """No traceback, an exit code that is documented, and a word to whoever failed."""
    assert code in (0, 1, 2), code
    for text in (out, err):
        assert "Traceback" not in text, text
        assert 'File "' not in text, text
    if code:
        assert (out + err).strip(), code
    last = err.rstrip("\n").split("\n")[-1]
    if "Error: " in err and not err.startswith("Usage: "):
        assert code == 2, code
        assert last.startswith("Error: "), err
        assert last.isprintable(), last


class Streams:
    """Standard streams as a program in a UTF-8 terminal has them: output is strict, errors are escaped."""

    def __init__(self, given: str = "") -> None:
        self.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8")
        self.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        self.stderr = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)

    @contextmanager
    def standing_in(self) -> Iterator[Streams]:
        """In place of those of `sys`."""
        before = sys.stdin, sys.stdout, sys.stderr
        sys.stdin, sys.stdout, sys.stderr = self.stdin, self.stdout, self.stderr
        try:
            yield self
        finally:
            sys.stdin, sys.stdout, sys.stderr = before

    def said(self) -> tuple[str, str]:
        """What was written to each."""
        return tuple(  # type: ignore[return-value]
            stream.buffer.getvalue().decode("utf-8", "replace") for stream in (self.stdout, self.stderr)
        )


def as_json(value: Any) -> bytes:
    """The value as a careless program writes it: NaN and half characters as they are."""
    return json.dumps(value).encode()
