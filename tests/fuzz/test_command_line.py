"""Whatever is typed: it works, or one sentence says what is wrong; nothing outside the folder is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import UUID

import pytest
import typer.main
from hypothesis import example, given
from hypothesis import strategies as st

from fastrm_monitor import cli
from fastrm_monitor.dashboard import serve
from fastrm_monitor.demo import PROXY_FOLDER, run
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab import ask, labels
from fastrm_monitor.lab import evaluate as lab_evaluate
from fastrm_monitor.lab.datasets import scene_set
from tests import fuzzing
from tests.fuzzing import TALLY, THOROUGH, Streams, World, budget, check_output

PASSWORD = "correct-horse"
"""Stands in URLs of stores, and must never be shown."""


COMMANDS: dict[tuple[str, ...], Any] = {}
for _name, _command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
    for _more, _one in getattr(_command, "commands", {}).items():
        COMMANDS[_name, _more] = _one
    if not hasattr(_command, "commands"):
        COMMANDS[(_name,)] = _command

KNOWN = {name[0] for name in COMMANDS}

FILES_READ = (
    "images", "images/1.png", "images/loop.png", "images/link.png", "images/dangling.png", "vqav2.json",
    "vqav2-2.json", "gqa.json", "gqa-2.json", "pope.json", "jsonl.json", "jsonl", "parquet", "parquet/cases.parquet",
    "datasets", "empty", "empty.json", "notes.txt", "proxy", "proxy/config.json", "store.db", "sign-in.toml", "nowhere",
    "../outside", "../outside/secret.txt", "../outside/picture.png", "/dev/null", "/proc/self/environ", "/", ".", "",
)  # fmt: skip
FILES_WRITTEN = (
    "out", "out", "out", "out/of/many", "empty", "notes.txt", "notes.txt/in", "images", "store.db", ".", "a b", "[red]",
    "\u202e", "\udcff", "a\nb", "x" * 300, "/dev/full", "/dev/null", "/dev/null/x", "/proc/nobody/x", "out.png",
)  # fmt: skip
STORES = (
    "sqlite:///store.db", "sqlite:///store.db", "sqlite:///store.db", "sqlite:///new.db", "sqlite:///nowhere/x.db",
    "sqlite:///notes.txt", "sqlite:///images", "sqlite:///../outside/secret.txt", "sqlite:///empty.json", "sqlite://",
    "sqlite:///:memory:", "sqlite://store.db", "sqlite:///store.db?mode=ro", "sqlite:///file:store.db?mode=ro&uri=true",
    "sqlite:///store.db?timeout=x", "sqlite:///\udcff.db", "sqlite:///a\nb.db", "store.db", "mysql://u@h/d",
    f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", f"postgresql://u:{PASSWORD}@127.0.0.1:99999/d",
    f"postgresql://u:{PASSWORD}@x@127.0.0.1:1/d", f"postgresql://u:{PASSWORD}/@127.0.0.1:1/d",
    "postgresql:///d?host=/nowhere",
    f"postgresql+psycopg://127.0.0.1:1/d?password={PASSWORD}", f"postgresql://u:{PASSWORD}@127.0.0.1:x/d",
    f"postgresql://127.0.0.1:1/d?{PASSWORD}",
)  # fmt: skip
USUAL: dict[str, tuple[str, ...]] = {
    "output": FILES_WRITTEN,
    "overlay": FILES_WRITTEN,
    "cache": FILES_WRITTEN,
    "store": STORES,
    "proxy": ("proxy", "proxy", str(PROXY_FOLDER), *FILES_READ),
    "model": ("embedded", "embedded", "images", "./images", "./nowhere", "~/x", "org/model", "proxy"),
    "question": ("is there a red circle?", "is it?", " ", "x" * 3000, "<image>", "<image><image>", "USER:", "</s>"),
    "dataset": ("scenes", "vqav2", "gqa", "pope", "jsonl", "jsonl", "SCENES"),
    "kinds": ("natural", "all", "natural,noise", "natural,,", "nobody", ""),
    "calibrate_kinds": ("natural", "natural,habit_free", "nobody"),
    "sections": ("all", "none", "cost", "cost,layers", "nobody", ""),
    "form": ("query-row", "self-attention", "jsonl", "parquet", "datasets"),
    "targets": ("centred", "soft", "hard"),
    "since": ("2020-01-01", "2020-01-01T10:00", "0001-01-01", "9999-12-31T23:59:59", "2020-13-45", "yesterday"),
    "older_than": ("30d", "0d", "12h", "999999w", "1m", "-1d", "1y", "d"),
    "case": (str(UUID(int=1)), "nobody", str(UUID(int=1)).upper()),
    "host": ("127.0.0.1", "localhost", "::1", "0.0.0.0", "x" * 70, "..", "999.1.1.1"),
    "flag_rate": ("0.1", "0.5", "0", "1", "-1", "nan"),
    "precision": ("0.3", "0.9", "0", "2", "inf"),
    "risk": ("0.9", "0.05", "1e-300", "nan"),
    "confidence": ("0.5", "0.9", "1", "nan", "1e400"),
    "max_new_tokens": ("1", "2", "0", "-1"),
    "count": ("1", "0"),
    "auth": ("sign-in.toml", "nowhere.toml", "images", "notes.txt", "/dev/null"),
}
"""Right and nearly right values, by option; of the others words and the names of files."""
WHERE_WRITTEN = ("output", "overlay", "cache")
"""Options whose every value is within the run's folder: who names another place means it."""
FIXED = {
    "max_new_tokens": "a long answer takes long",
    "store": "would make files wherever the word says",
}
"""Options that take no other words than the usual ones, and why."""


@st.composite
def command_lines(draw: st.DrawFn, chosen: tuple[tuple[str, ...], ...] = tuple(COMMANDS)) -> list[str]:
    """A command with options that are right, nearly right and hostile."""
    name = draw(st.sampled_from(chosen))
    said = list(name)
    for option in COMMANDS[name].params:
        often = 9 if option.required else 3
        for _ in range(draw(st.integers(1, 2)) if getattr(option, "multiple", False) else 1):
            if draw(st.integers(0, 9)) >= often:
                continue
            switch = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
            if getattr(option, "is_flag", False):
                said.append(switch)
                continue
            usual = st.sampled_from(USUAL.get(option.name, FILES_READ))
            free = option.name not in WHERE_WRITTEN and option.name not in FIXED
            value = draw(fuzzing.words if free and draw(st.integers(0, 3)) == 0 else usual)
            said += draw(st.sampled_from([[switch, value], [f"{switch}={value}"]]))
    if draw(st.integers(0, 7)) == 0:
        said.insert(draw(st.sampled_from([0, len(name), len(said)])), draw(fuzzing.words))
    return said


QUICK = tuple(name for name in COMMANDS if name[0] in ("db", "export", "calibrate"))
"""Commands that start without a model's libraries."""
SET = ("FASTRM_PROXY", "FASTRM_AUTH", "FASTRM_MODEL", "FASTRM_READ_ONLY", "FASTRM_THRESHOLD")


class StoppedError(FastRMError):
    """The run came to where a model would be asked thousands of questions."""


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Commands without what takes seconds: loading the model again, labelling, thousands of scenes, another process.

    Where few inputs are tried, without a model.
    """
    load, draw = ask.load_lvlm, scene_set.scenes

    def stop(*_: object, **__: object) -> NoReturn:
        raise StoppedError("Stopped here.")

    class Served:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            assert all("\0" not in word for word in [*command, *env.values()])

        def wait(self) -> int:
            return 0

        def poll(self) -> int:
            return 0

    embedded = request.getfixturevalue("embedded") if THOROUGH else None

    def load_lvlm(name: str, device: str | None = None) -> tuple[Any, Any]:
        return (embedded or stop()) if name == ask.EMBEDDED else load(name, device)

    monkeypatch.setattr(ask, "load_lvlm", load_lvlm)
    monkeypatch.setattr(labels, "make_labels", stop)
    monkeypatch.setattr(lab_evaluate, "make_labels", stop)
    monkeypatch.setattr(run, "_requests", stop)
    monkeypatch.setattr(scene_set, "scenes", lambda kind, seed, count, asked: draw(kind, seed, min(count, 2), asked))
    monkeypatch.setattr(serve, "subprocess", SimpleNamespace(Popen=Served))


def typed(said: list[str], answers: str = "") -> tuple[object, str, str]:
    """The console script in this process: exit code, standard output, standard error."""
    streams = Streams(answers)
    with pytest.MonkeyPatch.context() as patch, streams.standing_in():
        patch.setattr(sys, "argv", ["fastrm-monitor", *said])
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    return code, *streams.said()


@budget(few=60, many=2500)
@given(
    said=command_lines(),
    answers=st.sampled_from(["", "y\n", "n\n", "maybe\n"]),
    environment=st.none()
    | st.none()
    | st.none()
    | st.tuples(st.just("FASTRM_STORE"), st.sampled_from(STORES))
    | st.tuples(st.sampled_from(SET), fuzzing.words),
    dotenv=st.sampled_from([*[None] * 9, b"FASTRM_STORE=\xff\n", b"FASTRM_THRESHOLD=x", b"\0", b"=", b"FASTRM_"]),
)
@example(["db", "purge", "--older-than=999999w", "-y"], "", None, None)
@example(["db", "upgrade"], "", None, b"FASTRM_STORE=\xff\n")
@example(["dashboard", "--store=sqlite:///store.db", "--host", "x" * 70, "--allow-remote"], "", None, None)
@example(["demo", "--output", "\udcff"], "", None, None)
@example(["export", "--output", "a\nb", "--store", "sqlite:///store.db", "--all"], "", None, None)
def test_command_line(
    world: World,
    instant: None,
    said: list[str],
    answers: str,
    environment: tuple[str, str] | None,
    dotenv: bytes | None,
) -> None:
    """Whatever is typed, no command ends in a traceback, shows a password or changes anything but what it was given."""
    TALLY[f"command {next(word for word in said if word in KNOWN)}"] += 1
    folder = world.fresh()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        if environment is not None:
            patch.setenv(*environment)
        with world.contained():
            if dotenv is not None:
                (folder / ".env").write_bytes(dotenv)
            code, out, err = typed(said, answers)
    check_output(code, out, err)
    assert PASSWORD not in out + err


@budget(few=2, many=15)
@given(said=command_lines(QUICK if not THOROUGH else (*QUICK, ("doctor",), ("score",))))
def test_command_line_of_a_process(world: World, said: list[str]) -> None:
    """The installed command is no other."""
    TALLY["command, as a process"] += 1
    folder = world.fresh()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with world.contained():
        ended = subprocess.run(
            [sys.executable, "-B", "-m", "fastrm_monitor.cli", *said],
            cwd=folder,
            env=environment,
            input=b"",
            capture_output=True,
            timeout=120,
            check=False,
        )
    out, err = (stream.decode("utf-8", "replace") for stream in (ended.stdout, ended.stderr))
    check_output(ended.returncode, out, err)
    assert PASSWORD not in out + err
