"""What a writer delivers to in these tests."""

import subprocess
import sys
import threading
import time


class Sink:
    """Takes batches and losses; `gate` holds deliveries back while it is cleared."""

    def __init__(self):
        self.batches, self.lost, self.idles = [], [], 0
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.fails = None

    def deliver(self, items):
        self.entered.set()
        self.gate.wait(10)
        if self.fails:
            raise self.fails
        self.batches.append(items)

    def dropped(self, item, reason):
        self.lost.append((item, reason))

    def idle(self):
        self.idles += 1

    @property
    def delivered(self):
        return [item for batch in self.batches for item in batch]


def stuck(writer, sink):
    """Have the writer's thread hang in a delivery of the item "first"."""
    sink.gate.clear()
    writer.put("first", keep=False)
    assert sink.entered.wait(5)


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "fastrm-writer"]


def run_script(body):
    """Run a script with a writer in a fresh process; its lines and its seconds after the last one."""
    script = f"""
import threading, time
from fastrm_monitor.records.writer import Writer
say = lambda *words: print(*words, flush=True)
{body}
say("end", time.time())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    end = next(line for line in lines if line.startswith("end"))
    return [line for line in lines if line != end], time.time() - float(end.split()[1]), done.stderr
