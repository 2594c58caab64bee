"""The parent: rounds of all engines, side by side or one by one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from benchmarks.serving.engine import serve
from benchmarks.serving.traffic import AGAIN, ALONE, TITLES, WATCHED, Facts, Load, Round, Setup


class Child:
    """An engine's process, seen from the parent."""

    def __init__(self, setup: Setup) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, setup), name=f"engine-{setup.variant}")
        self._process.start()
        theirs.close()
        self.variant = setup.variant
        self.seconds_to_start: float = self._answer()

    def ask(self, what: str, load: str = "", seed: int = 0) -> Any:
        """Have the engine do something and wait for it."""
        self._pipe.send((what, load, seed))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
            self._process.join(60)
        if self._process.is_alive():
            self._process.terminate()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(10)
            raise SystemExit(f"The engine '{TITLES[self.variant]}' ended: its last lines are above.") from None


Rounds = dict[str, dict[int, Round]]
"""By variant and number; those of the same number belong together."""
Results = dict[str, Rounds]
"""By load."""


def side_by_side(setups: list[Setup], rounds: int, say: Callable[[str], None]) -> tuple[Results, dict[str, Facts], Any]:
    """All engines at once in memory, one at a time at work."""
    children: dict[str, Child] = {}
    try:
        for setup in setups:
            children[setup.variant] = Child(setup)
            say(f"{TITLES[setup.variant]}: started in {children[setup.variant].seconds_to_start:.0f} s")
        results: Results = {}
        for load in setups[0].loads:
            for child in children.values():
                child.ask("warm", load.name)
            own: Rounds = {variant: {} for variant in (AGAIN, *children)}
            for number in range(1, rounds + 1):
                order = list(own) if number % 2 else [WATCHED, ALONE]
                for variant in order if number % 4 < 2 else reversed(order):
                    child = children[ALONE if variant == AGAIN else variant]
                    seed = number + (1000 if variant == AGAIN else 0)  # else it would find its pictures in the cache
                    own[variant][number] = child.ask("round", load.name, seed)
                say(_progress(load, own, number))
            results[load.name] = own
        where = [(load, *children[WATCHED].ask("where", load.name, rounds + 1)) for load in setups[0].loads]
        facts = {variant: child.ask("facts") for variant, child in children.items()}
        return results, facts, where
    finally:
        for child in children.values():
            child.close()


def one_by_one(setups: list[Setup], rounds: int, say: Callable[[str], None]) -> tuple[Results, dict[str, Facts], Any]:
    """An engine after the other, where one fills the device's memory; vLLM alone comes first and once more last."""
    results: Results = {load.name: {} for load in setups[0].loads}
    facts, where = {}, []
    for variant, setup in [*((setup.variant, setup) for setup in setups), (AGAIN, setups[0])]:
        child = Child(setup)
        try:
            say(f"{TITLES[variant]}: started in {child.seconds_to_start:.0f} s")
            for load in setup.loads:
                child.ask("warm", load.name)
                own = {number: child.ask("round", load.name, number) for number in range(1, rounds + 1)}
                results[load.name][variant] = own
                say(f"{load.name}, seconds: {', '.join(f'{one.seconds:.2f}' for one in own.values())}")
            if variant == WATCHED:
                where = [(load, *child.ask("where", load.name, rounds + 1)) for load in setup.loads]
            facts[variant] = child.ask("facts")
        finally:
            child.close()
    return results, facts, where


def _progress(load: Load, rounds: Rounds, number: int) -> str:
    seconds = ", ".join(f"{variant} {own[number].seconds:.2f}" for variant, own in rounds.items() if number in own)
    return f"{load.name}, round {number}, seconds: {seconds}"


def ratios(rounds: Rounds, variant: str, figure: Callable[[Round], float]) -> list[float]:
    """A figure of a variant over that of vLLM alone, round by round."""
    alone = rounds[ALONE]
    return [figure(one) / figure(alone[number]) for number, one in rounds[variant].items()]
