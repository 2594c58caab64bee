"""On the PYTHONPATH of the vLLM tests, so that it reaches vLLM's child processes too. Never part of the package.

A machine without a GPU has a CPU build of torch, beside which the packaged torchvision cannot load its operators, and
Triton without a backend. Both are mended here, when the module in question is first asked for.
"""

import importlib
import os
import sys


class _Mending:
    """A finder that finds nothing and only learns what is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            _define_torchvision_operators()
        if name == "vllm" and os.environ.get("TRITON_INTERPRET") == "1":
            _let_triton_interpret_on_the_cpu()
        return


_library = None


def _define_torchvision_operators():
    """The two operators whose fake implementations torchvision registers when it is imported."""
    global _library
    if _library is None:
        torch = importlib.import_module("torch")
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _let_triton_interpret_on_the_cpu():
    """Model runner V2 of vLLM asks for an active Triton backend; the interpreter needs no compiler."""
    backends = importlib.import_module("triton.backends")
    if "cpu" not in backends.backends:
        driver = type("CpuDriver", (), {"is_active": staticmethod(lambda: True)})
        backends.backends["cpu"] = backends.Backend(compiler=None, driver=driver)


sys.meta_path.insert(0, _Mending())
