"""The OpenAI-compatible server in its own processes, asked by the real `openai` client."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
import openai
import pytest
from sqlalchemy import select
from sqlalchemy import text as sql

from fastrm_monitor.records.images import unpack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.schema import upgrade
from fastrm_monitor.records.store import Store
from tests.with_vllm.asked import ENGINE, asks, by_transformers
from tests.with_vllm.conftest import environment

FIELDS = {"confidence", "calibrated", "entropy", "flagged", "reason", "case_id"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address and the store of a running server: three processes, a fifth of the answers sampled."""
    folder = tmp_path_factory.mktemp("server")
    url = f"sqlite:///{folder / 'store.db'}"
    upgrade(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", ENGINE["model"],
        "--served-model-name", "embedded", "--dtype", "float32", "--enforce-eager", "--block-size", "32",
        "--max-model-len", "256", "--limit-mm-per-prompt", json.dumps(ENGINE["limit_mm_per_prompt"]),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    settings = environment(
        FASTRM_STORE=url, FASTRM_SAMPLE_RATE="0.2", VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_LOGGING_LEVEL="WARNING"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}", Store(url), folder / "log"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address, process, log):
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=120)


def data_url(picture):
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def messages(row):
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in row.pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": row.question}]}]


def ask(client, row, **options):
    """One chat request; with the begin token, which this model's chat template leaves out and transformers adds."""
    wanted = {"model": "embedded", "temperature": 0, "max_tokens": 4, **options}
    return client.chat.completions.create(messages=messages(row), extra_body={"add_special_tokens": True}, **wanted)


def traffic(store, until=lambda counts: True):
    """Counts by name and reason, once the server's background thread has written what `until` waits for."""
    for _ in range(100):
        counts = Counter(store.totals())
        if until(counts):
            return counts
        time.sleep(0.2)
    pytest.fail(f"the counts did not come: {counts}")


def of(counts, name):
    return sum(value for (one, _), value in counts.items() if one == name)


def test_200_requests_at_concurrency_16(server, client):
    """Every response has its object; the store has exactly the flagged and sampled ones, with the right maps."""
    _, store, _ = server
    rows = asks(50, questions=4, seed=41)
    before = traffic(store)
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda row: ask(client, row), rows))
    objects = [response.choices[0].fastrm for response in responses]
    assert len(objects) == 200
    assert all(set(one) == FIELDS for one in objects)
    assert all(0 <= one["confidence"] <= 1 and 0 <= one["entropy"] <= 1 and one["calibrated"] for one in objects)
    flagged = [one for one in objects if one["flagged"]]
    assert 0 < len(flagged) < 100
    assert all(one["reason"] == "low_confidence" and one["case_id"] for one in flagged)
    kept = {one["case_id"]: k for k, one in enumerate(objects) if one["case_id"] is not None}
    assert len(flagged) < len(kept) < 120
    counts = traffic(
        store,
        lambda counts: (
            of(counts, "stored") >= of(before, "stored") + len(kept) and of(counts, "seen") >= of(before, "seen") + 200
        ),
    )
    assert of(counts, "scored") - of(before, "scored") == 200
    assert of(counts, "flagged") - of(before, "flagged") == len(flagged)
    assert counts["engine", next(reason for name, reason in counts if name == "engine")] == 1
    wanted = by_transformers(rows)
    with store.session() as session:
        cases = session.scalars(select(Case)).all()
        assert {case.case_id for case in cases} >= set(kept)
        for case in cases:
            if case.case_id in kept:
                k = kept[case.case_id]
                (picture,) = case.pictures
                values = unpack_map(picture.relevance, picture.rows, picture.columns)
                assert np.abs(values - wanted[k].maps[0]).max() < 1e-3  # stored in 16 bits
                assert case.question == rows[k].question
                assert case.answer == responses[k].choices[0].message.content.strip()
                assert case.request_id == responses[k].id
                assert picture.content
                assert case.confidence == pytest.approx(wanted[k].confidence, abs=1e-3)
                assert case.flagged or case.sampled


def test_a_stream_ends_with_the_object(client):
    """In the chunk that ends the choice and in no other; the text is that of the plain response."""
    (row,) = asks(1, seed=42)
    plain = ask(client, row)
    chunks = list(ask(client, row, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason is not None]
    assert len(ends) == 1
    told = {name: value for name, value in ends[0].fastrm.items() if name != "case_id"}
    wanted = {name: value for name, value in plain.choices[0].fastrm.items() if name != "case_id"}
    assert told == pytest.approx(wanted, abs=1e-6)
    others = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason is None]
    assert not any(hasattr(choice, "fastrm") for choice in others)
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_several_choices(client):
    """n=2, as a response and as a stream: each choice has its own object."""
    (row,) = asks(1, seed=43)
    response = ask(client, row, n=2, temperature=1.0)
    assert [set(choice.fastrm) for choice in response.choices] == [FIELDS, FIELDS]
    found = Counter()
    for chunk in ask(client, row, n=2, temperature=1.0, stream=True):
        for choice in chunk.choices:
            if hasattr(choice, "fastrm"):
                found[choice.index] += 1
    assert found == {0: 1, 1: 1}


def test_text_only_and_text_completions(client):
    """Without a picture there is nothing to score, and the object says so; a list of prompts has one each."""
    (row,) = asks(1)
    bare = client.chat.completions.create(
        model="embedded", messages=[{"role": "user", "content": row.question}], max_tokens=4
    )
    assert bare.choices[0].fastrm == {
        **dict.fromkeys(FIELDS),
        "calibrated": False,
        "flagged": False,
        "reason": "no_image",
    }
    both = client.completions.create(model="embedded", prompt=[row.question, "how many ?"], max_tokens=4, n=2)
    assert [choice.fastrm["reason"] for choice in both.choices] == ["no_image"] * 4
    ends = [
        choice.index
        for chunk in client.completions.create(
            model="embedded", prompt=[row.question, "how many ?"], max_tokens=4, n=2, stream=True
        )
        for choice in chunk.choices
        if hasattr(choice, "fastrm")
    ]
    assert sorted(ends) == [0, 1, 2, 3]


def test_the_callers_trace_is_joined(server, client):
    """A case carries the trace of the caller's `traceparent`."""
    _, store, _ = server
    header = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    kept = []
    for row in asks(30, seed=44):
        kept.append(ask(client, row, extra_headers=header).choices[0].fastrm["case_id"])
        if kept[-1] is not None:
            break
    assert kept[-1] is not None
    for _ in range(100):
        with store.session() as session:
            case = session.scalars(select(Case).where(Case.case_id == kept[-1])).one_or_none()
            if case is not None:
                assert case.trace_id == TRACE
                break
        time.sleep(0.1)
    else:
        pytest.fail("the case did not come")


def test_bad_requests_get_the_servers_own_answer(server, client):
    """Too long, no such model, a broken picture: the status is vLLM's, and nothing is counted as an answer."""
    _, store, _ = server
    (row,) = asks(1)
    ask(client, row)
    time.sleep(1.5)
    before = traffic(store)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        ask(client, type(row)(row.pictures, "red " * 400))
    with pytest.raises(openai.NotFoundError):
        ask(client, row, model="another")
    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="embedded", messages=broken, max_tokens=4)
    time.sleep(1.5)
    assert of(traffic(store), "seen") == of(before, "seen")


def test_a_client_that_disconnects(server, client):
    """Its request is aborted and counted; the others are answered and scored."""
    address, store, log = server
    rows = asks(6, seed=45)
    before = traffic(store)
    body = {"model": "embedded", "messages": messages(rows[0]), "max_tokens": 150, "ignore_eos": True, "stream": True}
    for _ in range(3):
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as response:
            next(response.iter_lines())  # the first chunk, and then the client is gone
    assert all(ask(client, row).choices[0].fastrm["confidence"] is not None for row in rows[1:])
    counts = traffic(store, lambda counts: of(counts, "seen") >= of(before, "seen") + 8)
    assert counts["skipped", "aborted"] - before["skipped", "aborted"] >= 1
    assert of(counts, "seen") == of(counts, "scored") + of(counts, "skipped")
    assert "Traceback" not in log.read_text()


def test_doctor_sees_the_server(server):
    """`doctor --vllm` names the version, the runner of the engine that ran, and what it counted."""
    _, store, _ = server
    command = [os.path.join(os.path.dirname(sys.executable), "fastrm-monitor"), "doctor", "--vllm"]
    settings = environment(FASTRM_STORE=store.safe_url, COLUMNS="200")
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vLLM 0.32.0" in done.stdout
    assert "runner V1, hooks live" in done.stdout
    assert "skipped (no_image)" in done.stdout


def test_the_log_says_when_the_store_fails(server, client):
    """The last test here: without its tables the store fails, the answers come as ever, and the log has one line."""
    _, store, log = server
    said = "and the store is tried again later"
    assert said not in log.read_text()
    with store.session(write=True) as session:
        session.execute(sql("DROP TABLE case_pictures"))
    objects = [ask(client, row).choices[0].fastrm for row in asks(40, seed=46)]
    assert all(one["confidence"] is not None for one in objects)
    assert any(one["case_id"] for one in objects)
    for _ in range(50):
        if said in log.read_text():
            assert log.read_text().count(said) == 1
            return
        time.sleep(0.2)
    pytest.fail(log.read_text()[-2000:])
