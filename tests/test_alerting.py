"""The rules and the dashboard file of docs/alerting, with the real promtool and a real Prometheus.

Both come with Debian's package prometheus; without it these tests are skipped, unless FASTRM_REQUIRE_PROMETHEUS=1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ALERTING = ROOT / "docs" / "alerting"
RULES = yaml.safe_load((ALERTING / "rules.yml").read_text())["groups"][0]["rules"]
FASTER = 300
"""The live test evaluates the shipped rules with all times divided by this: ten minutes are two seconds."""


@pytest.fixture(scope="module")
def tool():
    """The path of a program of the package prometheus."""

    def tool(name):
        found = shutil.which(name)
        if found is None:
            message = f"{name} is not installed (apt-get install prometheus)"
            if os.environ.get("FASTRM_REQUIRE_PROMETHEUS") == "1":
                pytest.fail(message)
            pytest.skip(message)
        return found

    return tool


def run(*words):
    return subprocess.run(words, cwd=ALERTING, capture_output=True, text=True, timeout=60, check=False)


def dashboard_queries():
    """(panel, expression) of every query of the dashboard file, its variables filled in."""
    board = json.loads((ALERTING / "dashboard.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "5s").replace("$job", ".+"))
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def test_rules_are_valid_and_do_what_they_say(tool):
    """The real promtool accepts the rules, and their unit tests pass: each fires when it should, and only then."""
    checked = run(tool("promtool"), "check", "rules", "rules.yml")
    assert (checked.returncode, f"{len(RULES)} rules found" in checked.stdout) == (0, True), checked.stderr
    tested = run(tool("promtool"), "test", "rules", "rules_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_rule_tests_can_fail(tool, tmp_path):
    """A rule whose threshold is moved fails the unit tests."""
    for name in ("rules.yml", "rules_test.yml"):
        shutil.copy(ALERTING / name, tmp_path)
    text = (tmp_path / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(text.replace("> 0.25\n          and", "> 0.5\n          and"))
    assert (tmp_path / "rules.yml").read_text() != text
    tested = run(tool("promtool"), "test", "rules", str(tmp_path / "rules_test.yml"))
    assert "FastRMFlagRateHigh" in tested.stdout + tested.stderr
    assert tested.returncode == 1


def test_every_rule_is_tested_and_explained():
    """Every alert has a unit test in which it fires, and docs/alerting.md says what to do about it."""
    tests = yaml.safe_load((ALERTING / "rules_test.yml").read_text())["tests"]
    firing = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert firing == {rule["alert"] for rule in RULES}
    text = (ROOT / "docs" / "alerting.md").read_text()
    for name in firing:
        assert f"`{name}`" in text, name


def test_dashboard_is_a_dashboard():
    """The file has panels with unique ids that do not overlap, each with a query, and asks for a data source."""
    board = json.loads((ALERTING / "dashboard.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job"]


def test_dashboard_queries_are_valid(tool, tmp_path):
    """The real promtool accepts every expression of the dashboard."""
    rules = [{"record": f"panel:{k}", "expr": expr} for k, (_, expr) in enumerate(dashboard_queries())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = run(tool("promtool"), "check", "rules", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- a real Prometheus ----------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def sped_up(rules):
    """The shipped rules with every time divided by FASTER."""
    seconds = {"m": 60, "h": 3600, "d": 86400}

    def shorter(match):
        return f"{max(int(match[1]) * seconds[match[2]] * 1000 // FASTER, 1000)}ms"

    return re.sub(r"\b(\d+)([mhd])\b", shorter, rules)


class Live:
    """A Prometheus that scrapes a serving process of ours."""

    def __init__(self, url, source):
        self.url, self._source = url, source

    def say(self, line):
        self._source.stdin.write(f"{line}\n")
        self._source.stdin.flush()

    def ask(self, path, **query):
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=5) as reply:
            return json.load(reply)["data"]

    def query(self, expression):
        return self.ask("query", query=expression)["result"]

    def firing(self):
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def wait(self, condition, seconds):
        """Whether `condition()` comes true within `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if condition():
                    return True
            except OSError:  # it is starting
                pass
            time.sleep(0.2)
        return False


@pytest.fixture(scope="module")
def live(tool, tmp_path_factory):
    """The serving process, a Prometheus with the shipped rules sped up, and both ended afterwards."""
    prometheus, folder = tool("prometheus"), tmp_path_factory.mktemp("prometheus")
    ours, theirs = free_port(), free_port()
    (folder / "rules.yml").write_text(sped_up((ALERTING / "rules.yml").read_text()))
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "captions", "static_configs": [{"targets": [f"127.0.0.1:{ours}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FASTRM_"))}
    environment = {**plain, "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(ours)}
    source = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "metrics_server.py"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with source, (folder / "log").open("w") as log:
        try:
            assert source.stdout.readline() == "ready\n"
            server = subprocess.Popen(
                [prometheus, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{theirs}",
                 "--storage.tsdb.path=data"],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
            with server:
                try:
                    made = Live(f"http://127.0.0.1:{theirs}", source)
                    up = made.wait(lambda: made.query("fastrm_drift and on () up == 1"), 20)
                    assert up, (folder / "log").read_text()
                    yield made
                finally:
                    server.kill()
        finally:
            source.kill()


def test_names_in_prometheus(live):
    """Prometheus has every metric under the name that the rules, the dashboard and the documentation use."""
    names = {name for name in live.ask("label/__name__/values") if name.startswith("fastrm_")}
    assert names == {
        *(f"fastrm_{one}_{part}" for one in ("confidence", "entropy", "scoring_duration_seconds")
          for part in ("bucket", "sum", "count")),
        "fastrm_results_total", "fastrm_skipped_total", "fastrm_failed_total", "fastrm_dropped_total",
        "fastrm_queue_size", "fastrm_drift", "fastrm_drift_cases",
    }  # fmt: skip
    shown = "".join(expr for _, expr in dashboard_queries())
    documented = (ROOT / "docs" / "telemetry.md").read_text()
    for name in names:
        assert re.search(rf"\b{name}\b", shown), f"the dashboard does not show {name}"
        assert re.sub(r"_(bucket|sum|count)$", "", name) in documented
    used = re.findall(r"\bfastrm_\w+", shown + "".join(rule["expr"] for rule in RULES))
    assert set(used) <= names


def test_every_panel_shows_something(live):
    """Every query of the dashboard gets data from a Prometheus that scraped us for a few seconds."""
    empty = [one for one in dashboard_queries() if not live.wait(lambda one=one: live.query(one[1]), 10)]
    assert empty == []


def test_series_are_few(live):
    """No metric has a label that grows with the traffic."""
    labels = {name for series in live.ask("series", **{"match[]": '{__name__=~"fastrm_.+"}'}) for name in series}
    assert {name for name in labels if not name.startswith("otel_scope_")} == {
        "__name__", "job", "instance", "le", "model", "verdict", "reason", "stage", "feature", "statistic", "sample",
    }  # fmt: skip


def test_alerts_fire_on_what_they_watch(live):
    """Quiet on ordinary traffic for longer than any alert waits; then a shift, a loss, a failure, blindness: alerts."""
    time.sleep(4)
    assert live.firing() == set()
    live.say("shifted")
    shifted = {"FastRMConfidenceDrift", "FastRMFlagRateHigh"}
    assert live.wait(lambda: shifted <= live.firing(), 20), live.ask("alerts")
    assert "FastRMInputDrift" not in live.firing()  # the maps are what they were
    live.say("drop")
    live.say("fail")
    lost = {"FastRMAnswersDropped", "FastRMFailures"}
    assert live.wait(lambda: lost <= live.firing(), 10), live.ask("alerts")
    live.say("unscored")
    assert live.wait(lambda: "FastRMNothingScored" in live.firing(), 15), live.ask("alerts")
