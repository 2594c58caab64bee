"""The entry point that vLLM calls in each of its processes (`vllm.general_plugins`); inert unless switched on."""

from __future__ import annotations

import logging
import os


def register() -> None:
    """Watch this process's part of vLLM, if `FASTRM_PROXY` is set. Cheap, safe to call again, never raises."""
    if not os.environ.get("FASTRM_PROXY"):
        return
    from fastrm_monitor.guard import logger

    if logger.level == logging.NOTSET:  # a library of the server's silences whatever has no level of its own
        logger.setLevel(logging.WARNING)
    try:
        from fastrm_monitor.integrations.vllm import internals

        internals.install()
    except Exception as error:
        logger.warning("fastrm-monitor: vLLM goes on serving, unmonitored: %s", error)
