r"""How a spool file looks: cases as JSON and bytes, each with its length and checksum. No pickle, no database.

    file   = "FASTRMSP" version(1 byte) record*
    record = length(4) crc32(4) payload                  length and crc32 of the payload; integers little-endian
                                                         a length with its highest bit set, and its own crc32, spans
                                                         what was delivered
    payload = length(4) JSON bytes*                       length of the JSON; then what the JSON has the lengths of

The JSON of a case has the columns of `models.Case`, times as ISO 8601 in UTC, and `pictures`, a list with the columns
of `models.CasePicture`; there `content` (may be null) and `relevance` are numbers of bytes, which follow the JSON in
this order. A reader ignores names that it does not know. A record that was cut off in the middle ends the file; damage
in front of others costs what it hit, and the reader goes on at the next case whose length and checksum fit. The
record of a traffic file is JSON alone: {server: [[minute, name, reason, count so far], ...]}.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from fastrm_monitor.records.counters import TrafficRow
from fastrm_monitor.records.models import Case, CasePicture

VERSION = 1
HEADER = b"FASTRMSP" + bytes([VERSION])

_RECORD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_DELIVERED = 1 << 31  # added to a length
_JSON = re.compile(rb'\{"')  # how that of a case begins; the length before it tells it from other JSON
_MOST_CHECKED = 64 << 20  # bytes; more only where somebody forged false records
_CASE = tuple(column.name for column in Case.__table__.columns if column.name not in ("id", "verdict", "version"))
_PICTURE = tuple(column.name for column in CasePicture.__table__.columns if column.name not in ("id", "case_key"))
_BYTES = ("content", "relevance")  # in this order after the JSON


def frame(payload: bytes) -> bytes:
    """A payload, which is not empty, as a record."""
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def damaged(data: bytes) -> bytes:
    """Bytes that cannot be read as one record that cannot be read either, whatever follows it."""
    return _RECORD.pack(len(data), zlib.crc32(data) ^ 0xFFFFFFFF) + data


def records(data: bytes, start: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """The records of a file's bytes from `start` on: (end of the record, payload).

    The payload is None for bytes that cannot be read, up to the next case that can. What is cut off at the end is left
    out, and where `start` is None what was delivered, too.
    """
    at = delivered(data) if start is None else start
    while at + _RECORD.size <= len(data):
        if (end := _whole(data, at)) is not None:
            yield end, data[at + _RECORD.size : end]
            at = end
            continue
        ends = _damaged_ends(data, at)
        if not ends:
            return
        for at in ends:
            yield at, None


def delivered_mark(end: int) -> bytes:
    """What is written over a file's first length and checksum once everything before the position `end` was delivered.

    It has a checksum of its own, so that damage to it, or to the length that it replaces, delivers twice, not never.
    """
    length = (end - len(HEADER) - _RECORD.size) | _DELIVERED
    return _RECORD.pack(length, zlib.crc32(_LENGTH.pack(length)))


def delivered(data: bytes) -> int:
    """Position up to which a file's bytes were delivered; that of its first record when none were."""
    if len(data) < len(HEADER) + _RECORD.size:
        return len(HEADER)
    length, checksum = _RECORD.unpack_from(data, len(HEADER))
    if not length & _DELIVERED or checksum != zlib.crc32(_LENGTH.pack(length)):
        return len(HEADER)
    return int(len(HEADER) + _RECORD.size + length - _DELIVERED)


def _fitting(data: bytes, at: int) -> int | None:
    """The end of the record at a position by its length; None where that cannot be."""
    if at + _RECORD.size > len(data):
        return None
    length, _ = _RECORD.unpack_from(data, at)
    end = int(at + _RECORD.size + length)
    return end if length and end <= len(data) else None


def _whole(data: bytes, at: int) -> int | None:
    """The end of the record at a position by its length and checksum; None where there is none."""
    end = _fitting(data, at)
    _, checksum = _RECORD.unpack_from(data, at) if end is not None else (0, 0)
    return end if end is not None and zlib.crc32(memoryview(data)[at + _RECORD.size : end]) == checksum else None


def _damaged_ends(data: bytes, start: int) -> list[int]:
    """Where the records end that cannot be read, from `start` up to one that can; none when it is a torn tail."""
    following, ends, at = _next_case(data, start + 1), [], start
    while (end := _fitting(data, at)) is not None and (following is None or end <= following):
        at = end
        ends.append(at)
        if following is None and _whole(data, at) is not None:
            break
    # Lengths that do not lead to it are damaged themselves: nobody knows how many records there were.
    return ends if following is None or following in ends else [following]


def _next_case(data: bytes, start: int) -> int | None:
    """The first whole record of a case at `start` or behind; the end of the data when looking takes too long."""
    patience = _MOST_CHECKED
    for found in _JSON.finditer(data, start):
        at = found.start() - _LENGTH.size - _RECORD.size
        if at < start or (end := _fitting(data, at)) is None:
            continue
        (length,) = _LENGTH.unpack_from(data, at + _RECORD.size)
        closing = found.start() + length - 1
        if closing >= end or data[closing : closing + 1] != b"}":
            continue
        if _whole(data, at) is not None:
            return at
        patience -= end - at
        if patience < 0:
            return len(data)
    return None


def encode_case(case: Case) -> bytes:
    """The payload of a case."""
    fields: dict[str, Any] = {name: getattr(case, name) for name in _CASE}
    fields["created_at"] = case.created_at.isoformat()
    pictures, blobs = [], []
    for picture in case.pictures:
        shown = {name: getattr(picture, name) for name in _PICTURE}
        for name in _BYTES:
            if shown[name] is not None:
                blobs.append(shown[name])
                shown[name] = len(shown[name])
        pictures.append(shown)
    text = json.dumps({**fields, "pictures": pictures}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def decode_case(payload: bytes) -> Case:
    """The case of a payload.

    Raises:
        ValueError: it is none, whatever is wrong with it.
    """
    try:
        (length,) = _LENGTH.unpack_from(payload)
        at = _LENGTH.size + length
        fields = json.loads(payload[_LENGTH.size : at])
        pictures = []
        for shown in fields["pictures"]:
            values = {name: shown.get(name) for name in _PICTURE}
            for name in _BYTES:
                if values[name] is not None:
                    end = at + int(values[name])
                    if not at <= end <= len(payload):
                        raise ValueError("more bytes than there are")
                    values[name], at = payload[at:end], end
            pictures.append(CasePicture(**values))
        values = {name: fields.get(name) for name in _CASE}
        values["created_at"] = datetime.fromisoformat(fields["created_at"])
        return Case(**values, pictures=pictures)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, struct.error) as error:
        raise ValueError(f"not a spooled case: {error}") from error


def encode_traffic(unsent: Sequence[tuple[str, Sequence[TrafficRow]]]) -> bytes:
    """The payload of `Counters.unsent`."""
    rows = {server: [(minute.isoformat(), *rest) for minute, *rest in rows] for server, rows in unsent}
    return json.dumps(rows, separators=(",", ":")).encode()


def decode_traffic(payload: bytes) -> list[tuple[str, list[TrafficRow]]]:
    """What `encode_traffic` was given.

    Raises:
        ValueError: the payload is none of its.
    """
    try:
        return [
            (server, [(datetime.fromisoformat(minute), name, reason, value) for minute, name, reason, value in rows])
            for server, rows in json.loads(payload).items()
        ]
    except (AttributeError, RecursionError, TypeError) as error:
        raise ValueError(f"not traffic counts: {error}") from error
