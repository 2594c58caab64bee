"""The entry point that runs in every process of vLLM: inert unless asked for, and it never stops the engine."""

from __future__ import annotations

import logging
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from fastrm_monitor.integrations.vllm import internals
from fastrm_monitor.integrations.vllm.plugin import register


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM that has all that is needed of it, as empty classes, but for one method."""
    monkeypatch.setenv("FASTRM_PROXY", "proxy")

    def vllm(without=""):
        modules, classes = {}, {}
        for path, names in internals.NEEDED.items():
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                parent = ".".join(parts[:end])
                if parent not in modules:
                    modules[parent] = ModuleType(parent)
                    modules[parent].__path__ = []
                    monkeypatch.setitem(sys.modules, parent, modules[parent])
            for owner, method in (name.split(".") for name in names):
                if owner not in classes:
                    classes[owner] = type(owner, (), {"__init__": lambda self: None})
                    setattr(modules[path], owner, classes[owner])
                if f"{owner}.{method}" != without:
                    setattr(classes[owner], method, lambda self, *_: "served")
        modules["vllm"].__version__ = "9.9"
        return classes

    return vllm


def methods(classes):
    return {name: dict(vars(owner)) for name, owner in classes.items()}


def said(caplog):
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


def test_the_entry_point():
    """The plug-in stands under the group that vLLM loads in all its processes."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    group = "vllm.general_plugins"
    (value,) = project["entry-points"][group].values()
    assert EntryPoint("fastrm_monitor", value, group).load() is register


def test_inert_without_a_proxy():
    """Without `FASTRM_PROXY` nothing of vLLM, torch or the monitor is imported, so that no start of an engine slows."""
    code = (
        "import sys\n"
        "from fastrm_monitor.integrations.vllm.plugin import register\n"
        "register()\n"
        "heavy = 'vllm', 'torch', 'numpy', 'fastrm_monitor.monitor', 'fastrm_monitor.integrations.vllm.internals'\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("value", [None, ""])
def test_inert_where_a_vllm_is(value, vllm, monkeypatch):
    """Without a proxy, or with an empty one, vLLM's classes stay as they are."""
    classes = vllm()
    before = methods(classes)
    monkeypatch.delenv("FASTRM_PROXY")
    if value is not None:
        monkeypatch.setenv("FASTRM_PROXY", value)
    register()
    assert methods(classes) == before


def test_twice(vllm, caplog):
    """A second call in the same process wraps nothing again."""
    classes = vllm()
    plain = methods(classes)
    register()
    once = methods(classes)
    assert {name for name in classes if once[name] != plain[name]} >= {"Scheduler", "AsyncLLM", "LLMEngine"}
    register()
    assert methods(classes) == once
    assert said(caplog) == []


def test_without_vllm(monkeypatch, caplog):
    """A process that lost its vLLM hears of it in one line."""
    monkeypatch.setenv("FASTRM_PROXY", "proxy")
    monkeypatch.setitem(sys.modules, "vllm", None)
    register()
    (line,) = said(caplog)
    assert "goes on serving, unmonitored" in line


def test_a_vllm_that_is_no_package(monkeypatch, caplog):
    """A broken installation of vLLM stops nothing here."""
    monkeypatch.setenv("FASTRM_PROXY", "proxy")
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    register()
    assert len(said(caplog)) == 1


def test_a_vllm_whose_import_fails(vllm, monkeypatch, caplog):
    """A vLLM that cannot be imported half way, as without its driver, is named in the log with its own error."""
    classes = vllm()

    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("no driver")

    monkeypatch.setitem(sys.modules, "vllm.v1.engine.async_llm", Broken("vllm.v1.engine.async_llm"))
    before = methods(classes)
    register()
    assert methods(classes) == before
    (line,) = said(caplog)
    assert "no driver" in line


@pytest.mark.parametrize("missing", [name for names in internals.NEEDED.values() for name in names])
def test_a_vllm_of_another_version(missing, vllm, caplog):
    """Of a version that lacks a method the log says which, and nothing is wrapped: all is watched or nothing."""
    classes = vllm(without=missing)
    before = methods(classes)
    register()
    (line,) = said(caplog)
    assert missing in line
    assert "9.9" in line
    assert methods(classes) == before


def test_a_start_that_cannot_be_watched(vllm, caplog):
    """Where watching fails at an engine's start, the engine starts all the same and the log says why, once each."""
    classes = vllm()
    register()
    classes["LLMEngine"]()
    assert classes["WorkerWrapperBase"]().initialize_from_config() == "served"
    lines = said(caplog)
    assert len(lines) == 2
    assert all("goes on serving, unmonitored" in line for line in lines)
