"""The spool: what was written whole comes back once, whatever was cut off, crashed or filled up in between."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrm_monitor.records import frames, segments
from fastrm_monitor.records.frames import (
    HEADER,
    decode_case,
    decode_traffic,
    encode_case,
    encode_traffic,
    frame,
    records,
)
from fastrm_monitor.records.models import CasePicture
from fastrm_monitor.records.spool import Spool, spool_for
from tests.forking import exit_codes, forked, forks


@pytest.fixture
def make(tmp_path):
    """Make a spool in the same folder as all others; they are closed at the end."""
    made = []

    def make(limit=1 << 20, folder=tmp_path / "spool"):
        made.append(Spool(folder, limit))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


def drain(spool, **options):
    """Deliver everything that waits."""
    found = []
    while (lent := spool.lend(**options)) is not None:
        found += lent.payloads
        spool.done(lent)
    return found


def files(spool, suffix):
    return sorted(spool.folder.glob(f"*{suffix}"))


# --- the form of a file -----------------------------------------------------------------------------------------------


def columns(record, *left_out):
    return {c.name: getattr(record, c.name) for c in type(record).__table__.columns if c.name not in left_out}


def test_a_case_comes_back(make_case):
    """Every column of a case and its pictures, and every byte, is what it was."""
    bare = CasePicture(position=1, rows=1, columns=1, relevance=b"\0\0", region=[0.0, 0.5, 1.0, 1.0])
    for case in (make_case(3), make_case(4, question="\u202e'; 👩🏽‍🚒\n", pictures=[*make_case(5).pictures, bare])):
        back = decode_case(encode_case(case))
        left_out = ("id", "verdict", "version")
        assert columns(back, *left_out) == columns(case, *left_out)
        assert [columns(p, "id", "case_key") for p in back.pictures] == [
            columns(p, "id", "case_key") for p in case.pictures
        ]


def test_a_later_version_may_add_names(make_case):
    """What a reader does not know is left out, and the rest is read."""
    payload = encode_case(make_case(1))
    length = int.from_bytes(payload[:4], "little")
    text = payload[4 : 4 + length][:-1] + b',"mood":"good"}'
    changed = len(text).to_bytes(4, "little") + text + payload[4 + length :]
    assert decode_case(changed).question == make_case(1).question


@given(st.binary(max_size=200))
def test_any_bytes_are_a_case_or_none(payload):
    """Whatever a record holds, reading it is a case or a ValueError."""
    for data in (payload, len(payload).to_bytes(4, "little") + payload, b"\2\0\0\0{}" + payload):
        with pytest.raises(ValueError):  # noqa: PT011  # any sentence will do
            decode_case(data)
        with pytest.raises(ValueError):  # noqa: PT011
            decode_traffic(data + b"?")


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.data())
def test_a_torn_tail_costs_its_record_alone(payloads, data):
    """Wherever a file is cut off, the records that are whole are read, and nothing else."""
    whole = HEADER + b"".join(map(frame, payloads))
    cut = data.draw(st.integers(len(HEADER), len(whole)))
    ends = [end for end, _ in records(whole)]
    assert [payload for _, payload in records(whole[:cut])] == payloads[: sum(end <= cut for end in ends)]


@given(st.binary(max_size=60))
def test_garbage_is_read_without_harm(garbage):
    """Bytes that are no records are skipped or end the file."""
    for end, _ in records(HEADER + garbage):
        assert end <= len(HEADER) + len(garbage)


def test_counts_come_back():
    """Traffic counts are what they were, minute by minute."""
    unsent = [
        ("host:1:ab", []),
        ("host:1:cd", [(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "dropped", "queue_full", 2.5)]),
    ]
    assert decode_traffic(encode_traffic(unsent)) == unsent


# --- the folder -------------------------------------------------------------------------------------------------------


def test_flagged_first_then_in_order(make):
    """What waits comes out once: flagged records before the others, each in the order they came."""
    spool = make()
    for number in range(6):
        assert spool.add(b"%d" % number, flagged=number % 3 == 0) == (True, 0)
    assert spool.waiting == 6
    assert drain(spool, most=2) == [b"0", b"3", b"1", b"2", b"4", b"5"]
    assert (spool.waiting, spool.lend()) == (0, None)
    assert list(spool.folder.iterdir()) == []


def test_what_was_kept_comes_again(make):
    """Records that could not be delivered are lent again, those that were are not."""
    spool = make()
    for number in range(4):
        spool.add(b"%d" % number, flagged=True)
    spool.done(spool.lend(most=1))
    spool.keep(spool.lend(most=2))
    assert spool.waiting == 3
    assert drain(spool) == [b"1", b"2", b"3"]


def test_large_records_come_one_by_one(make):
    """A lending has as many records as the bytes allow, and at least one."""
    spool = make()
    for _ in range(3):
        spool.add(b"x" * 1000, flagged=True)
    lent = spool.lend(most_bytes=100)
    assert len(lent.payloads) == 1
    spool.done(lent)
    assert len(spool.lend(most_bytes=5000).payloads) == 2


def test_for_the_owner_only(make):
    """Whatever the umask, nobody else may look into the folder or the files."""
    before = os.umask(0)
    try:
        spool = make()
        spool.add(b"secret", flagged=True)
        spool.save_traffic(b"counts")
    finally:
        os.umask(before)
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(make, tmp_path):
    """A folder that another user made, e.g. below /tmp, is not written to."""
    (tmp_path / "spool").mkdir()
    os.chown(tmp_path / "spool", 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        make().add(b"x", flagged=True)


def test_nothing_is_made_before_the_first_record(make):
    """Making a spool, asking it and closing it leave the disk as it was."""
    spool = make()
    assert (spool.waiting, spool.lend(), spool.adopt(), list(spool.traffic())) == (0, None, 0, [])
    spool.close()
    assert not spool.folder.exists()


def test_it_survives_a_restart(make):
    """What a closed spool leaves is taken over by the next, once, with its traffic counts; nothing remains."""
    first, second, third = make(), make(), make()
    for number in range(3):
        first.add(b"%d" % number, flagged=number == 2)
    first.save_traffic(b"counts")
    first.close()
    assert second.adopt() == 3
    assert third.adopt() == 0
    assert [payload for _, payload in second.traffic()] == [b"counts"]
    assert drain(second) == [b"2", b"0", b"1"]
    for owner, _ in second.traffic():
        second.drop_traffic(owner)
    assert list(second.folder.iterdir()) == []


def test_what_a_living_process_has_is_left_alone(make):
    """Two spools in one folder deliver their own records alone."""
    first, second = make(), make()
    first.add(b"first", flagged=True)
    second.add(b"second", flagged=True)
    first.save_traffic(b"counts")
    assert (first.adopt(), second.adopt(), list(second.traffic())) == (0, 0, [])
    assert (drain(first), drain(second)) == ([b"first"], [b"second"])


def test_a_killed_process_leaves_what_it_wrote(make, tmp_path):
    """What a process wrote before SIGKILL, and nothing twice, is taken over by the next."""
    script = """
import os, signal, sys
from pathlib import Path
from fastrm_monitor.records.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 20)
for number in range(100):
    spool.add(b"%d" % number, flagged=True)
spool.done(spool.lend(most=10))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "spool")], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    spool = make()
    assert spool.adopt() == 90
    assert drain(spool) == [b"%d" % number for number in range(10, 100)]


@pytest.mark.parametrize("kind", ["flagged", "sampled"])
def test_what_was_delivered_is_not_delivered_again(make, kind):
    """Of a file that was delivered in part another process takes over the rest, also after a second such death."""
    first = make()
    for number in range(10):
        first.add(b"%d" % number, flagged=kind == "flagged")
    first.done(first.lend(most=3))
    first.keep(first.lend(most=3))
    first.close()
    second, third, fourth = make(), make(), make()
    assert second.adopt() == second.waiting == 7
    lent = second.lend(most=2)
    assert lent.payloads == [b"3", b"4"]
    second.done(lent)
    second.close()
    assert third.adopt() == 5
    assert drain(third) == [b"5", b"6", b"7", b"8", b"9"]
    assert list(third.folder.iterdir()) == []
    assert fourth.adopt() == 0


def test_a_damaged_record_costs_itself(make):
    """A flipped bit costs its record, which comes out as None; the others are whole."""
    first, second = make(), make()
    for _ in range(3):
        first.add(b"x" * 50, flagged=True)
    first.close()
    (path,) = files(first, ".flagged")
    data = bytearray(path.read_bytes())
    data[len(HEADER) + 58 + 20] ^= 1
    path.write_bytes(data)
    assert second.adopt() == 3
    assert drain(second) == [b"x" * 50, None, b"x" * 50]


def left_by_a_server(make, make_case, count=8):
    """A file of cases whose server ended, and where each of its records begins."""
    first = make()
    payloads = [encode_case(make_case(number)) for number in range(count)]
    for payload in payloads:
        first.add(payload, flagged=True)
    first.close()
    (path,) = files(first, ".flagged")
    starts = [len(HEADER) + sum(len(frame(one)) for one in payloads[:number]) for number in range(count)]
    return path, payloads, starts


@pytest.mark.parametrize("bit", [0, 6, 10, 17, 30, 31])
@pytest.mark.parametrize("number", [0, 1, 5, 6])
def test_a_damaged_length_costs_its_record(make, make_case, number, bit):
    """Whichever bit of a length flips, that case alone is lost, and is said to be (None)."""
    path, payloads, starts = left_by_a_server(make, make_case)
    data = bytearray(path.read_bytes())
    data[starts[number] + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    second, payloads[number] = make(), None
    assert second.adopt() == 8
    assert drain(second, most=3) == payloads


def test_damage_side_by_side(make, make_case):
    """Records whose lengths are whole are counted one by one, others as one; a torn tail behind changes nothing."""
    path, payloads, starts = left_by_a_server(make, make_case)
    data = bytearray(path.read_bytes())
    for at in (starts[1] + 50, starts[2] + 50, starts[4] + 2, starts[5] + 50):
        data[at] ^= 0x40
    path.write_bytes(data[:-5])
    second = make()
    assert second.adopt() == 6
    assert drain(second) == [payloads[0], None, None, payloads[3], None, payloads[6]]


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_damaged_header_costs_nothing(make, make_case, at):
    """The cases of a file whose first bytes are damaged are read, before and after some of them were delivered."""
    path, payloads, _ = left_by_a_server(make, make_case)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    second, third = make(), make()
    assert second.adopt() == 8
    second.done(second.lend(most=3))
    second.close()
    assert third.adopt() == 5
    assert drain(third) == payloads[3:]


def test_damage_to_what_says_delivered(make, make_case):
    """Where nobody can tell any more what was delivered, it is delivered again."""
    first = make()
    payloads = [encode_case(make_case(number)) for number in range(6)]
    for payload in payloads:
        first.add(payload, flagged=True)
    first.done(first.lend(most=2))
    first.close()
    (path,) = files(first, ".flagged")
    data = bytearray(path.read_bytes())
    data[len(HEADER) + 1] ^= 1
    path.write_bytes(data)
    second = make()
    second.adopt()
    assert drain(second) == [None, *payloads[1:]]


def test_a_file_that_cannot_be_read_is_kept(make, caplog):
    """A file in which nothing is readable counts as one record, is kept under another name, and is said once."""
    first, second, third = make(), make(), make()
    first.add(b"x", flagged=True)
    first.close()
    (path,) = files(first, ".flagged")
    path.write_bytes(b"\0" * 5000)
    assert second.adopt() == 1
    assert drain(second) == [None]
    (kept,) = second.folder.iterdir()
    assert (kept.suffix, kept.read_bytes()) == (".damaged", b"\0" * 5000)
    assert [str(kept) in line for line in caplog.messages] == [True]
    assert (third.adopt(), third.has_others()) == (0, False)
    assert [kept] == list(second.folder.iterdir())


def test_forged_records_do_not_take_long(make, make_case, monkeypatch):
    """Bytes that look like thousands of long cases are given up, as one lost record."""
    monkeypatch.setattr(frames, "_MOST_CHECKED", 1 << 20)
    one = frame(encode_case(make_case(1)))
    forged = b'\0\0\1\0....\3\0\0\0{"}' * 20_000
    found = list(records(HEADER + one + b"\xff" * 8 + forged))
    assert [(end, payload is None) for end, payload in found] == [
        (len(HEADER) + len(one), False),
        (len(HEADER) + len(one) + 8 + len(forged), True),
    ]


def test_files_that_hold_nothing_go(make):
    """A file that was cut off before its first record was whole is removed, with its lock."""
    for content in (b"", HEADER[:4], HEADER, HEADER + frame(b"abc")[:-1]):
        first, second = make(), make()
        first.add(b"x", flagged=True)
        first.close()
        files(first, ".flagged")[0].write_bytes(content)
        assert second.adopt() == 0
        assert list(second.folder.iterdir()) == []


def test_files_of_a_later_version_stay(make):
    """A file that this version cannot read is left for one that can, and is not held."""
    first, second, third = make(), make(), make()
    first.add(b"x", flagged=True)
    first.close()
    (path,) = files(first, ".flagged")
    path.write_bytes(HEADER[:-1] + b"\xff" + path.read_bytes()[len(HEADER) :])
    assert second.adopt() == third.adopt() == 0
    assert path.exists()
    path.write_bytes(HEADER + path.read_bytes()[len(HEADER) :])
    assert third.adopt() == 1


def test_the_cap_costs_unflagged_ones_first(make):
    """When the cap is reached, the newest unflagged record goes first; a flagged one only when there are no others."""
    spool = make(limit=600)
    taken = [spool.add(b"%02d" % number + b"-" * 80, flagged=False) for number in range(8)]
    assert taken == [(True, 0)] * 6 + [(False, 0)] * 2
    assert spool.add(b"+0" + b"+" * 130, flagged=True) == (True, 2)
    assert [spool.add(b"+%d" % n + b"+" * 80, flagged=True) for n in range(1, 6)] == [(True, 1)] * 4 + [(False, 0)]
    assert sum(path.stat().st_size for path in spool.folder.iterdir()) <= 600
    assert [payload[:2] for payload in drain(spool)] == [b"+0", b"+1", b"+2", b"+3", b"+4"]


def test_what_is_being_delivered_is_not_driven_out(make):
    """A lent record cannot be dropped under the hands of who delivers it."""
    spool = make(limit=270)
    spool.add(b"a" * 80, flagged=False)
    spool.add(b"b" * 80, flagged=False)
    lent = spool.lend(most=1)
    assert spool.add(b"c" * 80, flagged=True) == (True, 1)
    assert spool.add(b"d" * 80, flagged=True) == (False, 0)
    assert lent.payloads == [b"a" * 80]
    spool.done(lent)
    assert drain(spool) == [b"c" * 80]


def test_the_cap_holds_for_the_folder(make):
    """What other processes left there counts, too."""
    first, second = make(limit=1000), make(limit=1000)
    first.add(b"x" * 700, flagged=True)
    assert second.add(b"y" * 700, flagged=True) == (False, 0)
    assert second.add(b"y" * 100, flagged=True) == (True, 0)


def test_space_is_freed_file_by_file(make, monkeypatch):
    """A file gets no more than its share of records, and is deleted as soon as they are delivered."""
    monkeypatch.setattr(segments, "_MOST_BYTES", 1000)
    spool = make()
    for number in range(20):
        spool.add(b"%02d" % number + b"x" * 290, flagged=True)
    assert len(files(spool, ".flagged")) == 7
    spool.done(spool.lend())
    assert len(files(spool, ".flagged")) == 6
    assert [payload[:2] for payload in drain(spool)] == [b"%02d" % number for number in range(3, 20)]


def test_a_full_disk(make, monkeypatch):
    """A record that does not fit on the disk is an OSError; what was there before and what comes later is whole."""
    spool = make()
    spool.add(b"before", flagged=True)
    write, room = os.write, [0]

    def full(descriptor, data):
        room[0] = 0 if room[0] else 9  # nine bytes are taken, the next are not
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data[:9]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                spool.add(b"x" * 100, flagged=True)
        with pytest.raises(OSError, match="No space"):
            spool.save_traffic(b"x" * 100)
    assert spool.waiting == 1
    spool.add(b"after", flagged=True)
    spool.close()
    again = make()
    assert again.adopt() == 2
    assert drain(again) == [b"before", b"after"]


@pytest.fixture
def small_disk(monkeypatch, tmp_path):
    """Writes fail once the files under `tmp_path` take as many bytes as the list's only item."""
    size, write = [0], os.write

    def bounded(descriptor, data):
        room = size[0] - sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data[:room]))

    monkeypatch.setattr(os, "write", bounded)
    return size


def test_a_file_that_may_not_grow(make):
    """Where the system bounds the size of a file, the records go to several; one that fits in none is refused."""
    spool = make(1 << 22)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        taken = [spool.add(os.urandom(90_000), flagged=True) for _ in range(9)]
        with pytest.raises(OSError, match="File too large"):
            spool.add(os.urandom(500_000), flagged=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert taken == [(True, 0)] * 9
    assert spool.waiting == 9
    assert len(list(spool.folder.glob("*.flagged"))) == 3


def test_on_a_full_disk_flagged_records_drive_out_others(make, small_disk):
    """Where the disk is full below the cap, a flagged record takes the room of the newest unflagged ones, all counted.

    The oldest unflagged records stay as long as there is room, what was half-written leaves no trace, and when only
    flagged ones are left the next is refused.
    """
    small_disk[0] = 40_000
    spool = make()
    taken = 38
    for number in range(taken):
        assert spool.add(b"-%03d" % number + b"-" * 996, flagged=False) == (True, 0)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            spool.add(b"-" * 3000, flagged=False)
    driven_out = 0
    for number in range(20):
        took, out = spool.add(b"+%03d" % number + b"+" * 996, flagged=True)
        assert took
        driven_out += out
    assert spool.waiting == taken + 20 - driven_out
    assert 20 <= driven_out <= 30
    found = [payload[:4] for payload in drain(spool)]
    assert found == [b"+%03d" % n for n in range(20)] + [b"-%03d" % n for n in range(taken - driven_out)]
    for number in range(38):
        assert spool.add(b"+%03d" % number + b"+" * 996, flagged=True) == (True, 0)
    with pytest.raises(OSError, match="No space"):
        spool.add(b"+" * 4000, flagged=True)
    assert spool.waiting == 38


def test_who_drove_others_out_in_vain_says_so(make, small_disk):
    """A flagged record for which even all unflagged ones do not make room is refused, and they are counted."""
    small_disk[0] = 4000
    spool = make()
    assert [spool.add(b"-" * 900, flagged=False) for _ in range(3)] == [(True, 0)] * 3
    assert spool.add(b"+" * 8000, flagged=True) == (False, 3)
    assert spool.waiting == 0


def test_counts_drive_out_unflagged_records(make, small_disk):
    """On a full disk the counts, without which nobody knows what was lost, take the room of unflagged records."""
    small_disk[0] = 20_000
    spool = make()
    for _ in range(19):
        spool.add(b"-" * 992, flagged=False)
    taken, driven_out = spool.save_traffic(b"x" * 2000)
    assert taken
    assert driven_out > 0
    assert spool.waiting == 19 - driven_out
    spool.close()
    again = make()
    again.adopt()
    assert [payload for _, payload in again.traffic()] == [b"x" * 2000]


def test_a_look_at_what_others_left(make):
    """Whether others left something is told without touching it; the own files do not count."""
    first, second = make(), make()
    assert not second.has_others()
    first.add(b"x", flagged=True)
    assert (first.has_others(), second.has_others()) == (False, True)
    first.close()
    assert second.has_others()
    assert second.adopt() == 1
    assert not second.has_others()


def test_a_file_is_what_its_index_says(tmp_path, monkeypatch):
    """A record that could not be taken off the end of its file is not there any more when the next is appended."""
    segment = segments.Segment(tmp_path / "a.1.sampled", "a")
    for payload in (b"one", b"two"):
        segment.append(frame(payload))

    def refuse(path, size):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", refuse)
        segment.drop_newest()
    segment.append(frame(b"three"))
    assert segment.lend(9, 999) == [b"one", b"three"]
    assert segments.Segment.left_behind(segment.path, "a").ends == segment.ends


def test_a_folder_that_cannot_be_made(tmp_path):
    """Where a file is in the way, or the folder above is missing and shall not be made, it is an OSError."""
    (tmp_path / "file").write_text("")
    for spool in (Spool(tmp_path / "file" / "spool", 1000), Spool(tmp_path / "no" / "spool", 1000, parents=False)):
        with pytest.raises((NotADirectoryError, FileExistsError, FileNotFoundError)):
            spool.add(b"x", flagged=True)
        assert spool.adopt() == spool.waiting == 0
    assert not (tmp_path / "no").exists()


def test_a_folder_that_somebody_deletes(make):
    """What was deleted is lost and said to be (None); the next record has a new folder, and nobody else takes it."""
    spool = make()
    spool.add(b"gone", flagged=True)
    for path in spool.folder.iterdir():
        path.unlink()
    spool.folder.rmdir()
    spool.add(b"here", flagged=True)
    assert make().adopt() == 0
    (path,) = files(spool, ".flagged")
    path.unlink()
    spool.add(b"there", flagged=True)
    assert drain(spool) == [None, None, b"there"]


def test_a_link_is_not_followed(make, tmp_path):
    """A file that somebody replaced by a link to another is not written through."""
    spool = make()
    spool.add(b"x", flagged=True)
    (path,) = files(spool, ".flagged")
    path.unlink()
    (tmp_path / "victim").write_text("precious")
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        spool.add(b"y", flagged=True)
    assert (tmp_path / "victim").read_text() == "precious"


@forks
def test_a_forked_child_has_its_own(make):
    """The child writes files of its own; the parent's stay the parent's, and locked, after the child ended."""
    spool = make()
    spool.add(b"parent", flagged=True)

    def own():
        found = (spool.waiting, spool.adopt())
        spool.add(b"child", flagged=True)
        return found == (0, 0)

    assert exit_codes([forked(own)]) == [0]
    other = make()
    assert other.adopt() == 1
    assert (drain(other), drain(spool)) == ([b"child"], [b"parent"])


@forks
def test_a_parent_that_ends_leaves_its_files_to_others(make, tmp_path):
    """A child that lives on does not keep the lock of its parent."""
    script = """
import os, sys, time
from pathlib import Path
from fastrm_monitor.records.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 20)
spool.add(b"parent", flagged=True)
pid = os.fork()
if pid == 0:
    os.close(1)
    time.sleep(20)
print(pid, flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "spool")]
    child = int(subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout)
    try:
        assert make().adopt() == 1
    finally:
        os.kill(child, signal.SIGKILL)


def test_where_spools_lie(tmp_path, monkeypatch):
    """Beside an SQLite file; else in the user's state folder or the given one, a folder for each store; or nowhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    beside = spool_for("sqlite:////data/f.db", "/data/f.db", folder=None, megabytes=1)
    assert beside.folder == Path("/data/f.db.spool")
    one, other = (spool_for(f"postgresql://h/{name}", None, folder=None, megabytes=1) for name in "ab")
    assert one.folder.parent == other.folder.parent
    assert one.folder != other.folder
    assert one.folder.name == spool_for("postgresql://h/a", None, folder="/x", megabytes=1).folder.name
    assert spool_for("sqlite:////data/f.db", "/data/f.db", folder=str(tmp_path), megabytes=1).folder.parent == tmp_path
    assert spool_for("sqlite:////data/f.db", "/data/f.db", folder=None, megabytes=0) is None
