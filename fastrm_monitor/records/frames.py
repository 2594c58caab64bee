r"""How a spool file looks: cases as JSON and bytes, each with its length and checksum. No pickle, no database.

    file   = "FASTRMSP" version(1 byte) record*
    record = length(4) crc32(4) payload                  length and crc32 of the payload; integers little-endian
                                                         a length with its highest bit set spans what was delivered
    payload = length(4) JSON bytes*                       length of the JSON; then what the JSON has the lengths of

The JSON of a case has the columns of `models.Case`, times as ISO 8601 in UTC, and `pictures`, a list with the columns
of `models.CasePicture`; there `content` (may be null) and `relevance` are numbers of bytes, which follow the JSON in
this order. A reader ignores names that it does not know. A record that was cut off in the middle ends the file. The
record of a traffic file is JSON alone: {server: [[minute, name, reason, count so far], ...]}.
"""

from __future__ import annotations

import json
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
_CASE = tuple(column.name for column in Case.__table__.columns if column.name not in ("id", "verdict", "version"))
_PICTURE = tuple(column.name for column in CasePicture.__table__.columns if column.name not in ("id", "case_key"))
_BYTES = ("content", "relevance")  # in this order after the JSON


def frame(payload: bytes) -> bytes:
    """A payload as a record."""
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def records(data: bytes, start: int = len(HEADER)) -> Iterator[tuple[int, bytes | None]]:
    """The whole records of a file's bytes from `start` on: (end of the record, payload).

    The payload is None where the checksum is wrong. What was delivered, and what is cut off at the end, is left out.
    """
    while start + _RECORD.size <= len(data):
        length, checksum = _RECORD.unpack_from(data, start)
        start += _RECORD.size
        if length & _DELIVERED:
            start += length - _DELIVERED
            continue
        if start + length > len(data):
            return
        payload = data[start : start + length]
        start += length
        yield start, payload if zlib.crc32(payload) == checksum else None


def delivered_mark(end: int) -> bytes:
    """What is written over a file's first length once everything before the position `end` was delivered."""
    return _LENGTH.pack((end - len(HEADER) - _RECORD.size) | _DELIVERED)


def delivered(data: bytes) -> int:
    """Position up to which a file's bytes were delivered; that of its first record when none were."""
    if len(data) < len(HEADER) + _RECORD.size:
        return len(HEADER)
    (length,) = _LENGTH.unpack_from(data, len(HEADER))
    return len(HEADER) + _RECORD.size + length - _DELIVERED if length & _DELIVERED else len(HEADER)


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
