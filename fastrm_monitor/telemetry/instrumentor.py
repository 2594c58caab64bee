"""`opentelemetry-instrument python serve.py`: models are watched without a line of code in the application.

transformers has no place where model and processor meet, so this notes the processors that are made and looks at a
model when it first generates: one that fits the proxy of `FASTRM_PROXY` (width, image token and the weights of its
final norm) is instrumented with the processor of its own checkpoint. Every other model is left alone. Nothing is
imported before the application imports transformers; what goes wrong is one line in the log, and the model answers.

    from fastrm_monitor.telemetry.instrumentor import FastRMInstrumentor

    FastRMInstrumentor().instrument(proxy="proxy/", tracer_provider=provider)
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.instrumentation.utils import unwrap
from wrapt import register_post_import_hook, wrap_function_wrapper

from fastrm_monitor.guard import log_once, logger
from fastrm_monitor.records.forks import renew_in_child

if TYPE_CHECKING:
    from fastrm_monitor.integrations.hf import Handle

_WRAPPED = {
    "transformers.generation.utils": ("GenerationMixin", "generate", "_on_generate"),
    "transformers.processing_utils": ("ProcessorMixin", "__init__", "_on_processor"),
}
"""What is wrapped, by module: its class, the method, and ours around it."""


class FastRMInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its module is not typed
    """Watches transformers; inert unless a proxy is named, by `FASTRM_PROXY` or as an argument.

    `instrument(...)` takes `tracer_provider`, `meter_provider`, `logger_provider` and the arguments of
    `fastrm_monitor.instrument` other than model and processor. `uninstrument()` leaves transformers and every model as
    they were, and closes what was opened.
    """

    def __init__(self) -> None:
        if not hasattr(self, "_arguments"):  # the base class makes one instance only
            self._arguments: dict[str, Any] | None = None  # None: inert
            self._hooked = False
            self._wrapped: set[str] = set()
            self._processors: list[ref[Any]] = []
            self._known: WeakSet[Any] = WeakSet()  # models that were looked at
            self._handles: WeakSet[Handle] = WeakSet()
            self.after_fork()
            renew_in_child(self)

    def after_fork(self) -> None:
        """In a child process: a lock that nobody holds."""
        self._lock = threading.Lock()

    def instrumentation_dependencies(self) -> Collection[str]:
        """What is instrumented."""
        return ("transformers >= 5.0",)

    def _instrument(self, **kwargs: Any) -> None:
        providers = {name: kwargs.pop(f"{name}_provider", None) for name in ("tracer", "meter", "logger")}
        if not (kwargs.get("proxy") or os.environ.get("FASTRM_PROXY")):
            return
        if kwargs:
            if kwargs.get("proxy") is not None:
                kwargs["proxy"] = str(kwargs["proxy"])  # a path will do
            from fastrm_monitor.config import load_settings

            load_settings(**{name: value for name, value in kwargs.items() if name != "model_name"})
        if any(one is not None for one in providers.values()):
            from fastrm_monitor.telemetry.setup import use_providers

            use_providers(**{f"{name}_provider": one for name, one in providers.items()})
        self._arguments = kwargs
        for name in _WRAPPED:
            if name in sys.modules:
                self._wrap(sys.modules[name])
            elif not self._hooked:
                register_post_import_hook(self._wrap, name)
        self._hooked = True

    def _uninstrument(self, **kwargs: Any) -> None:
        self._arguments = None
        for name in self._wrapped:
            owner, method, _ = _WRAPPED[name]
            unwrap(getattr(sys.modules[name], owner), method)
        self._wrapped.clear()
        for handle in list(self._handles):
            handle.remove()
        self._handles.clear()
        self._known.clear()
        self._processors.clear()
        setup = sys.modules.get("fastrm_monitor.telemetry.setup")
        if setup is not None:
            setup.use_providers()

    def _wrap(self, module: Any) -> None:
        """Wrap what a module of transformers defines; called again for a hook that outlived `uninstrument`."""
        if self._arguments is None or module.__name__ in self._wrapped:
            return
        owner, method, ours = _WRAPPED[module.__name__]
        try:
            wrap_function_wrapper(module, f"{owner}.{method}", getattr(self, ours))
            self._wrapped.add(module.__name__)
        except Exception as error:  # a transformers of another shape; its import must go on
            log_once("fastrm-monitor: transformers goes on unmonitored: %s", "instrumentor", error)

    # --- in the application's calls -------------------------------------------------------------------------------

    def _on_processor(self, wrapped: Callable[..., Any], processor: Any, args: Any, kwargs: Any) -> None:
        """A processor is made: remember it for as long as it lives."""
        wrapped(*args, **kwargs)
        alive = [one for one in self._processors if one() is not None]
        self._processors = [*alive, ref(processor)]

    def _on_generate(self, wrapped: Callable[..., Any], model: Any, args: Any, kwargs: Any) -> Any:
        """A model generates: look at it, once; if it gets a handle now, that watches this call too."""
        handle = self._attach(model)
        if handle is None:  # or it has one already, whose wrapper is around this one
            return wrapped(*args, **kwargs)
        return handle._watch(wrapped, args, kwargs)

    def _attach(self, model: Any) -> Handle | None:
        """The handle, if the model is instrumented now; other threads do not wait for that and generate unwatched."""
        try:
            with self._lock:
                arguments = self._arguments
                if arguments is None or model in self._known:
                    return None
                self._known.add(model)
            return self._watch(model, arguments)
        except Exception as error:
            from fastrm_monitor.errors import FastRMError

            name = type(model).__name__
            if isinstance(error, FastRMError):
                logger.warning("fastrm-monitor: %s goes on answering, unmonitored: %s", name, error)
            else:
                log_once(f"fastrm-monitor: {name} goes on answering, unmonitored: %s", "instrumentor", error)
            return None

    def _watch(self, model: Any, arguments: dict[str, Any]) -> Handle | None:
        image_token = getattr(getattr(model, "config", None), "image_token_id", None)
        if image_token is None or getattr(model, "_fastrm_handle", None) is not None:
            return None  # not a vision-language model, or the application watches it by itself
        from fastrm_monitor.integrations.hf import instrument

        handle = instrument(model, self._processor_of(model, image_token), **arguments)
        self._handles.add(handle)
        return handle

    def _processor_of(self, model: Any, image_token: int) -> Any:
        """The newest processor of the model's own checkpoint, else the only one whose image token is the model's.

        Raises:
            ModelError: there is none, or nobody can tell which; one with other picture sizes would misplace the map.
        """
        alive = [one for one in (made() for made in self._processors) if one is not None]
        fitting = [
            one
            for one in alive
            if getattr(one, "image_token_id", None) == image_token and getattr(one, "tokenizer", None) is not None
        ]
        source = getattr(model.config, "_name_or_path", None) or None
        own = [one for one in fitting if getattr(one.tokenizer, "name_or_path", None) == source]
        if own or len(fitting) == 1:
            return (own or fitting)[-1]
        from fastrm_monitor.errors import ModelError

        found = "several processors fit it" if fitting else "no processor was made for it"
        raise ModelError(f"{found}: call fastrm_monitor.instrument(model, processor) in its place.")
