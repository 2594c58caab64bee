"""How much memory tensors take at once, counted on any device without its allocator's help.

Every operation is watched: its results' storages are counted from when they are made until they are freed, those that
autograd keeps included. Scratch memory inside of a single operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def most_alive(run: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once during a run, beyond those that were there before; its result included."""
    seen = _Watch()
    with seen:
        run()
    return seen.peak


class _Watch(TorchDispatchMode):
    """Follows the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation."""
        for tensor in tree_leaves((args, kwargs)):  # what was there before is not counted when a view of it is made
            self._meet(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._meet(tensor, made=True)
        self.peak = max(self.peak, self._now)
        return result

    def _meet(self, tensor: Any, made: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key not in self._known:
            self._known.add(key)
            self._now += size
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
