"""Several processes: nothing changes for one, and two make the proxy that one would have made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fastrm_monitor.cli import app
from fastrm_monitor.errors import DataError
from fastrm_monitor.lab import labels as lab
from fastrm_monitor.lab import sharing
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.labels import make_labels
from fastrm_monitor.scoring.checkpoint import load_proxy
from fastrm_monitor.scoring.proxy import build_proxy
from tests.tiny import tiny_asker

LONG = 300
"""Seconds after which a launched command has failed; it takes a few."""


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def test_one_process_shares_nothing() -> None:
    """Without a launcher this is the only process: all parts are its own, numbers and gradients stay what they are."""
    assert (sharing.rank(), sharing.world(), sharing.is_main()) == (0, 1, True)
    assert list(sharing.mine("abc")) == ["a", "b", "c"]
    assert (sharing.total(7), sharing.from_main(lambda: 0.25)) == (7, 0.25)
    layer = nn.Linear(2, 1)
    layer.weight.grad = gradient = torch.tensor([[1.0, 2.0]])
    sharing.average_gradients(layer, 3)
    assert layer.weight.grad is gradient
    assert layer.bias.grad is None
    sharing.join()
    assert not torch.distributed.is_initialized()


def test_parts_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes' parts are all parts, each once; a launcher's size without a number makes nobody wait."""
    found = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        found.append(list(sharing.mine(range(8))))
        assert sharing.is_main() == (rank == 0)
    assert found == [[0, 3, 6], [1, 4, 7], [2, 5]]
    monkeypatch.delenv("RANK")
    assert sharing.world() == 1


PAIR = """
import json, sys, torch
from torch import nn
from fastrm_monitor.lab import sharing

sharing.join()
sharing.join()
first = sharing.is_main()
layers = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(4)])
layers[3].weight.requires_grad_(False)
layers[0].weight.grad = torch.tensor([[1.0 if first else 4.0]])
if first:
    layers[1].weight.grad = torch.tensor([[6.0]])
sharing.average_gradients(layers, 2 if first else 1)
means = [None if one.weight.grad is None else float(one.weight.grad) for one in layers]
layers[0].weight.grad = torch.tensor([[5.0]]) if first else None
sharing.average_gradients(layers, 3 if first else 0)
told = sharing.from_main(lambda: 1 / 3 if first else 1 / 0)
print(json.dumps([sharing.rank(), means, float(layers[0].weight.grad), sharing.total(3 + sharing.rank()), told]))
"""


def test_two_processes_agree() -> None:
    """Both get the weighted mean of gradients, the sum of numbers, and the main process's number, which it alone makes.

    A gradient that one lacks is 0 there; one that both lack stays away; a process without questions weighs nothing.
    """
    port = free_port()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(pair):
        said, _ = process.communicate(timeout=LONG)
        number, means, alone, total, told = json.loads(said)
        assert number == rank
        assert means == [pytest.approx(2.0), pytest.approx(4.0), None, None]
        assert (alone, total) == (pytest.approx(5.0), 7)
        assert told == 1 / 3


def test_each_process_makes_its_own_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 of 2 makes every second shard; when the other is done both have all labels, in the set's order."""
    monkeypatch.setattr(lab, "_SHARD", 4)
    asker, data = tiny_asker(max_new_tokens=1), SceneSet(["natural"], 3, seed=5, questions=3)
    as_process(monkeypatch, 1, 2)
    monkeypatch.setattr(sharing, "total", lambda number: number)
    make_labels(asker, data, tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("*/*"))] == ["shard-00001.safetensors"]
    as_process(monkeypatch, 0, 2)
    monkeypatch.setattr(sharing, "total", lambda number: number + 1)
    made = make_labels(asker, data, tmp_path)
    assert [one.id for one in made.facts] == [one.id for one in data]


def test_processes_that_do_not_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that another process has made and this one does not see are one sentence, not labels with gaps."""
    as_process(monkeypatch, 0, 2)
    monkeypatch.setattr(sharing, "total", lambda number: number + 1)
    with pytest.raises(DataError, match="not one folder for all processes: choose a --cache on a disk"):
        make_labels(tiny_asker(max_new_tokens=1), SceneSet(["natural"], 2, seed=5), tmp_path)


def test_two_processes_distil_what_one_does(tmp_path: Path) -> None:
    """`accelerate launch` with two processes gives the proxy of one, up to rounding of sums, and prints one table."""
    options = [
        *("--kinds", "natural", "--pictures", "66", "--calibrate-pictures", "0", "--batch", "32"),
        *("--epochs", "2", "--no-heads", "--cache", str(tmp_path / "cache")),
    ]
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            # Not --cpu, under which this launcher starts a single process; without GPUs these two compute on the CPU.
            *("--multi_gpu", "--num_processes", "2", "--main_process_ip", "127.0.0.1"),
            *("--main_process_port", free_port(), "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "-m", "fastrm_monitor.cli"),
            *("distill", "--output", str(tmp_path / "two"), *options),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("validation_questions") == 1
    assert len(list(tmp_path.glob("cache/*/shard-*"))) == 2
    alone = CliRunner().invoke(app, ["distill", "--output", str(tmp_path / "one"), *options])
    assert alone.exit_code == 0, alone.output
    one, two = (load_proxy(tmp_path / name) for name in ("one", "two"))
    assert two.config.metrics["auprc"] == pytest.approx(one.config.metrics["auprc"], abs=0.01)
    torch.manual_seed(0)
    untrained = build_proxy(one.config).state_dict()
    ours, theirs = (load_file(tmp_path / name / "proxy.safetensors") for name in ("one", "two"))
    moved = torch.cat([(ours[name] - value).flatten() for name, value in untrained.items()]).norm()
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in untrained]).norm()
    assert moved > 0.1
    assert apart < 0.05 * moved
