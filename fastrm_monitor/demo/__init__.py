"""The embedded model and proxy, and the demonstration that serves real requests through them."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""The embedded LVLM, in the layout of a hub checkpoint (made by `python -m fastrm_monitor.lab.embed`)."""

PROXY_FOLDER = Path(__file__).parent / "proxy"
"""The proxy distilled from it (made by `fastrm-monitor distill --output fastrm_monitor/demo/proxy`)."""
