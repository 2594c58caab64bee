"""A store as months of traffic leave it, made quickly: `python benchmarks/big_store.py URL COUNT`.

Every case is flagged or drawn into the random sample, as a server writes them: 10 % of the answers are flagged, 5 % are
sampled. Traffic is kept by minute for the last days and by hour before, as `records.retention` leaves it.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sqlalchemy import Connection, func, select, text

import fastrm_monitor
from fastrm_monitor.records.counters import HOUR_MARK
from fastrm_monitor.records.engine import open_engine, read_url
from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Base, Case, CasePicture, Claim, DriftValue, Review, Traffic
from fastrm_monitor.records.retention import MINUTES_KEPT
from fastrm_monitor.records.store import Store

DAYS = 30
SERVERS = ("gpu-a:101", "gpu-b:102", "gpu-c:103", "gpu-d:104")
MODELS = ("llava-1.5-7b", "llava-1.5-13b")

_CHUNK = 20_000
_FLAGGED, _SAMPLED, _REVIEWED = 0.10, 0.05, 0.02  # of the answers, of the answers, of the cases
_CLAIMED = 20  # cases at each end of each order
_PICTURES = 8
_SIDE = 12  # patches
_COLORS = ("red", "green", "blue", "grey", "yellow", "black")
_THINGS = ("bus", "kite", "cup", "dog", "sign", "bench", "train", "lamp")


def fill(url: str, count: int, *, reviewed: float = _REVIEWED, seed: int = 0) -> None:
    """Add cases to a store, each with a picture, some with reviews; to an empty one also traffic, drift and claims.

    Args:
        url: of the store; an empty database gets the schema.
        count: cases, spread evenly over the `DAYS` before now.
        reviewed: share of the cases that have a verdict.
        seed: the same seed makes the same numbers, texts and ids; only times are relative to now.

    Raises:
        StoreError: the database cannot be written.
    """
    Store(url).close()
    engine = open_engine(read_url(url))
    rng = np.random.default_rng(seed)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    blobs = [_jpeg(rng) for _ in range(_PICTURES)]
    maps = [pack_map(rng.beta(0.4, 3, (_SIDE, _SIDE)).astype(np.float32)) for _ in range(64)]
    with engine.begin() as connection:
        put = _copy if connection.dialect.name == "postgresql" else _execute_many
        first = (connection.scalar(select(func.max(Case.id))) or 0) + 1
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            share = (start + np.arange(size) + 1) / count
            cases = list(_cases(rng, first + start, now - timedelta(days=DAYS), share, reviewed))
            put(connection, Case, cases)
            put(connection, CasePicture, (_picture(rng, case["id"], blobs, maps) for case in cases))
            put(connection, Review, (_review(case) for case in cases if case["verdict"] is not None))
        if first == 1:
            put(connection, Traffic, _traffic(rng, count, now))
            put(connection, DriftValue, _drift(rng, count, now))
            put(connection, Claim, _claims(connection, now))
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT setval('cases_id_seq', :last)"), {"last": first + count - 1})
    if (
        engine.dialect.name == "postgresql"
    ):  # as its autovacuum does; SQLite has no statistics unless somebody makes them
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


Row = dict[str, Any]


def _cases(
    rng: np.random.Generator, first: int, since: datetime, share: np.ndarray, verdicts_share: float
) -> Iterator[Row]:
    """Consecutive cases; `share` (n,) says how much of the time has passed at each."""
    size = len(share)
    either = 1 - (1 - _FLAGGED) * (1 - _SAMPLED)
    flagged = rng.random(size) < _FLAGGED / either
    sampled = ~flagged | (rng.random(size) < _SAMPLED)
    confidence = np.where(flagged, rng.beta(2, 3, size) * 0.6, 0.6 + 0.4 * rng.beta(3, 2, size)).round(6)
    entropy = np.clip(rng.normal(0.78, 0.12, size) - 0.2 * (confidence - 0.5), 0, 1).round(6)
    unscored = rng.random(size) < 0.002
    interest = np.clip(1 - 2 * np.abs(confidence - 0.5) + rng.normal(0, 0.1, size), 0, 1).round(6)
    verdicts = rng.choice(["correct", "wrong", "not_grounded", "unsure"], size, p=[0.5, 0.35, 0.1, 0.05])
    reviewed = rng.random(size) < verdicts_share
    server, model = rng.integers(len(SERVERS), size=size), rng.integers(len(MODELS), size=size)
    colors, things = rng.integers(len(_COLORS), size=size), rng.integers(len(_THINGS), size=size)
    users = rng.integers(0, 5000, size)
    seconds, tokens = rng.gamma(2, 0.001, size).round(6), rng.random(size).round(6)
    ids = rng.bytes(16 * size)
    for n in range(size):
        number = first + n
        case_id = uuid.UUID(bytes=ids[16 * n : 16 * n + 16], version=4)
        yield {
            "id": number,
            "case_id": str(case_id),
            "created_at": since + share[n].item() * timedelta(days=DAYS),
            "request_id": f"request-{number}",
            "user_key": f"user-{users[n]}" if users[n] < 4000 else None,
            "server": SERVERS[server[n]],
            "model": MODELS[model[n]],
            "question": f"Is the {_THINGS[things[n]]} on the left of the picture {_COLORS[colors[n]]}?",
            "answer": f"Yes, the {_THINGS[things[n]]} that can be seen on the left is {_COLORS[colors[n] - 1]}.",
            "confidence": None if unscored[n] else confidence[n].item(),
            "calibrated": True,
            "threshold": 0.6,
            "entropy": None if unscored[n] else entropy[n].item(),
            "features": {
                "map_entropy": entropy[n].item(),
                "map_mass": seconds[n].item(),
                "map_max": tokens[n].item(),
                "token_probability": confidence[n].item(),
                "token_entropy": interest[n].item(),
            },
            "flagged": bool(flagged[n]),
            "reason": "low_confidence" if flagged[n] else None,
            "sampled": bool(sampled[n]),
            "sample_rate": _SAMPLED,
            "proxy_version": "a1b2c3d4",
            "library_version": fastrm_monitor.__version__,
            "scoring_seconds": seconds[n].item(),
            "trace_id": case_id.hex,
            "span_id": case_id.hex[:16],
            "interest": None if unscored[n] else interest[n].item(),
            "verdict": str(verdicts[n]) if reviewed[n] else None,
            "version": int(reviewed[n]),
        }


def _picture(rng: np.random.Generator, case_key: int, blobs: Sequence[bytes], maps: Sequence[bytes]) -> Row:
    which = case_key % len(blobs)
    return {
        "case_key": case_key,
        "position": 0,
        "width": 336,
        "height": 336,
        "sha256": f"{which:064x}",
        "media_type": "image/jpeg",
        "content": blobs[which],
        "rows": _SIDE,
        "columns": _SIDE,
        "relevance": maps[case_key % len(maps)],
        "region": [0.0, 0.0, 1.0, 1.0],
    }


def _review(case: Row) -> Row:
    return {
        "case_key": case["id"],
        "created_at": case["created_at"] + timedelta(hours=3),
        "reviewer": f"reviewer-{case['id'] % 5}",
        "verdict": case["verdict"],
        "note": "",
        "tags": [],
    }


def _traffic(rng: np.random.Generator, count: int, now: datetime) -> Iterator[Row]:
    """By minute and server for the last days, by hour before."""
    answers = count / (1 - (1 - _FLAGGED) * (1 - _SAMPLED)) / (DAYS * 1440)  # a minute, of all servers
    recent = (now - MINUTES_KEPT).replace(minute=0)
    at = (now - timedelta(days=DAYS)).replace(minute=0)
    while at < now:
        minutes = 60 if at < recent else 1
        for server in SERVERS:
            seen = int(rng.poisson(answers * minutes / len(SERVERS)))
            yield from _counts(server, at + HOUR_MARK if minutes == 60 else at, seen, rng)
        at += timedelta(minutes=minutes)


def _counts(server: str, minute: datetime, seen: int, rng: np.random.Generator) -> Iterator[Row]:
    skipped = int(rng.binomial(seen, 0.02))
    scored = seen - skipped
    flagged = int(rng.binomial(scored, _FLAGGED))
    stored = flagged + int(rng.binomial(scored - flagged, _SAMPLED))
    for name, reason, value in (
        ("seen", "", seen),
        ("scored", "", scored),
        ("skipped", "no_image", skipped),
        ("flagged", "low_confidence", flagged),
        ("stored", "", stored),
        ("sampled_out", "", scored - stored),
        ("failed", "picture", int(rng.random() < 0.01)),
        ("confidence_sum", "", 0.8 * scored),
    ):
        if value:
            yield {"server": server, "minute": minute, "name": name, "reason": reason, "value": float(value)}


def _drift(rng: np.random.Generator, count: int, now: datetime) -> Iterator[Row]:
    """A window every 400 answers, at most one a minute."""
    windows = min(count // 60 + 1, DAYS * 1440)
    for window in range(windows):
        at = now - timedelta(days=DAYS) * (1 - (window + 1) / windows)
        for feature in ("confidence", "map_entropy", "map_mass", "map_max", "token_probability", "token_entropy"):
            for statistic in ("ks", "psi", "wasserstein"):
                yield {
                    "created_at": at,
                    "server": SERVERS[window % len(SERVERS)],
                    "model": MODELS[window % len(MODELS)],
                    "feature": feature,
                    "statistic": statistic,
                    "value": round(float(rng.gamma(2, 0.02)), 6),
                    "n_reference": 5000,
                    "n_window": 400,
                }


def _claims(connection: Connection, now: datetime) -> Iterator[Row]:
    """Reviewers at both ends of every queue, so that whoever looks for a case has some to pass over."""
    ends = (Case.id, Case.id.desc(), Case.confidence, Case.entropy.desc(), Case.interest.desc())
    keys = {key for end in ends for key in connection.scalars(select(Case.id).order_by(end).limit(_CLAIMED))}
    for key in sorted(keys):
        who = {"reviewer": f"reviewer-{key % 5}", "session": f"session-{key}"}
        yield {"case_key": key, **who, "expires_at": now + timedelta(hours=12)}


def _jpeg(rng: np.random.Generator) -> bytes:
    picture = Image.new("RGB", (48, 48), tuple(int(c) for c in rng.integers(0, 256, 3)))
    left, top = (int(edge) for edge in rng.integers(4, 24, 2))
    ImageDraw.Draw(picture).ellipse((left, top, left + 18, top + 14), fill="white", outline="black")
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


# --- bulk writing -----------------------------------------------------------------------------------------------------

_Values = Callable[[Row], tuple[Any, ...]]


def _values(connection: Connection, table: type[Base], names: Sequence[str]) -> _Values:
    """How a row becomes what the driver takes, by the types of the models."""
    dialect = connection.dialect
    types = [table.__table__.columns[name].type.dialect_impl(dialect) for name in names]
    binders = [kind.bind_processor(dialect) for kind in types]
    return lambda row: tuple(
        row[name] if bind is None else bind(row[name]) for name, bind in zip(names, binders, strict=True)
    )


def _named(rows: Iterable[Row]) -> tuple[list[str], Iterator[Row]]:
    """The names of the columns and the rows; no names when there are none."""
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        return [], iterator

    def everything() -> Iterator[Row]:
        yield first
        yield from iterator

    return list(first), everything()


def _execute_many(connection: Connection, table: type[Base], rows: Iterable[Row]) -> None:
    names, every = _named(rows)
    if names:
        marks = ", ".join("?" * len(names))
        into = f"INSERT INTO {table.__tablename__} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608  # our own names
        driver: Any = connection.connection.driver_connection
        driver.executemany(into, map(_values(connection, table, names), every))


def _copy(connection: Connection, table: type[Base], rows: Iterable[Row]) -> None:
    names, every = _named(rows)
    if names:
        driver: Any = connection.connection.driver_connection
        values = _values(connection, table, names)
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY {table.__tablename__} ({', '.join(names)}) FROM STDIN") as to,
        ):
            for row in every:
                to.write_row(values(row))


def main() -> None:
    """Fill the store that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="SQLAlchemy URL of the store")
    parser.add_argument("count", type=int, help="cases to add")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fill(arguments.url, arguments.count, seed=arguments.seed)


if __name__ == "__main__":
    main()
