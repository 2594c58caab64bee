"""Pictures in flight: kept as they came, within bounds, and shown as the model saw them."""

from __future__ import annotations

import gc
import threading
import weakref
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastrm_monitor.integrations.vllm import pictures
from fastrm_monitor.integrations.vllm.pictures import PictureShelf


class Upload:
    """A picture beside its encoded bytes, in the form that vLLM gives an upload: upright, in RGB, on white."""

    def __init__(self, content):
        self.original_bytes = content
        opened = ImageOps.exif_transpose(Image.open(BytesIO(content)))
        if opened.has_transparency_data:
            rgba = opened.convert("RGBA")
            opened = Image.new("RGB", rgba.size, (255, 255, 255))
            opened.paste(rgba, mask=rgba.split()[3])
        self.media = opened.convert("RGB")


class Sized(Upload):
    """An upload of so many bytes; never decoded."""

    def __init__(self, size):
        self.media, self.original_bytes = Image.new("RGB", (2, 2)), b"x" * size


def encoded(picture, kind="PNG", **options):
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size=(6, 4), mode="RGB", seed=0):
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8).squeeze(), mode=None)


def test_an_upload():
    """An upload is kept as its bytes and comes back as the model saw it."""
    shelf, upload = PictureShelf(1000), Upload(encoded(noise()))
    shelf.put("cat", upload)
    kept = shelf.get("cat")
    assert (kept.size, kept.source) == ((6, 4), upload.original_bytes)
    assert np.array_equal(np.asarray(shelf.maker("cat")()), np.asarray(upload.media))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_upload(orientation):
    """A photograph taken with a turned camera comes upright, in the size that the model saw."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    upload = Upload(encoded(noise(), exif=exif))
    shelf = PictureShelf(10_000)
    shelf.put("cat", upload)
    shown = shelf.maker("cat")()
    assert shelf.get("cat").size == shown.size == ((6, 4) if orientation < 5 else (4, 6))
    assert np.array_equal(np.asarray(shown), np.asarray(upload.media))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_an_upload_in_another_mode(mode):
    """A grey, indexed or transparent upload is shown as the model saw it; what is transparent, on white."""
    picture = noise(mode="RGBA").convert(mode) if mode != "LA" else noise(mode="LA")
    upload, shelf = Upload(encoded(picture)), PictureShelf(10_000)
    shelf.put("cat", upload)
    shown = shelf.maker("cat")()
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(upload.media)).max() <= 1


def test_a_callers_own_picture():
    """A decoded picture is referred to, not copied, takes room like its pixels, and is shown in RGB."""
    shelf, own = PictureShelf(24), noise(mode="L")
    shelf.put("cat", own)
    assert (shelf.get("cat").source, shelf.get("cat").bytes) == (own, 24)
    shown = shelf.maker("cat")()
    assert (shown.mode, shown.size) == ("RGB", (6, 4))


@pytest.mark.parametrize("item", [None, np.zeros((4, 4, 3)), b"bytes", ("video", {})])
def test_what_is_no_picture(item):
    """Embeddings and whatever else comes in a picture's place is not kept."""
    shelf = PictureShelf(1000)
    shelf.put("cat", item)
    assert shelf.get("cat") is None


def test_a_picture_that_is_gone():
    """Whether a picture can be had is decided at once; loading one that cannot says why."""
    shelf = PictureShelf(1000)
    gone = shelf.maker("cat")
    shelf.put("cat", Upload(encoded(noise())))
    there = shelf.maker("cat")
    for number in range(20):
        shelf.put(f"other {number}", Sized(500))
    assert shelf.get("cat") is None
    assert there().size == (6, 4)
    with pytest.raises(LookupError, match="no longer kept"):
        gone()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.booleans()), max_size=30))
def test_bounds(actions):
    """However often a hash comes again and in whatever size, what is kept fits, and it is the latest used that fit."""
    shelf, model = PictureShelf(100, entries=4), {}
    for number, size, read in actions:
        name = str(number)
        if read:
            kept = shelf.get(name)
            assert (kept and kept.bytes) == model.get(name)
            if name in model:
                model[name] = model.pop(name)
            continue
        shelf.put(name, Sized(size))
        model.pop(name, None)
        model[name] = size
        while sum(model.values()) > 100 or len(model) > 4:
            del model[next(iter(model))]
    assert {name: shelf.get(name).bytes for name in map(str, range(6)) if shelf.get(name)} == model


def test_the_longest_unused_go_first():
    """A picture that is asked for, or comes again, outlives one that is not."""
    shelf = PictureShelf(100)
    for name in ("read", "unused", "again"):
        shelf.put(name, Sized(30))
    shelf.get("read")
    shelf.put("again", Sized(30))
    shelf.put("new", Sized(40))
    assert [name for name in ("read", "unused", "again", "new") if shelf.get(name)] == ["read", "again", "new"]


def test_a_picture_without_room():
    """One that is larger than all the room is not kept."""
    shelf = PictureShelf(100)
    shelf.put("large", Sized(101))
    assert shelf.get("large") is None
    shelf.put("small", Sized(100))
    assert shelf.get("small").bytes == 100


def test_a_picture_without_room_costs_no_other():
    """One that is larger than all the room takes nobody else's."""
    shelf = PictureShelf(100)
    shelf.put("small", Sized(60))
    shelf.put("large", Sized(101))
    assert shelf.get("small") is not None


def test_threads():
    """Threads that keep and read at once raise nothing and leave the room as it was."""
    shelf, errors = PictureShelf(1000, entries=8), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(600):
                name = str(rng.integers(12))
                if rng.random() < 0.5:
                    shelf.put(name, Sized(int(rng.integers(0, 400))))
                else:
                    kept = shelf.get(name)
                    assert kept is None or kept.bytes < 400
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number in range(4):
        shelf.put(f"last {number}", Sized(250))
    assert all(shelf.get(f"last {number}") is not None for number in range(4))


def test_a_callers_picture_while_its_request_is_in_flight():
    """A request in flight keeps the picture, even when the caller does not; its case is made after it was let go."""
    shelf = PictureShelf(1 << 20)
    picture = Image.new("RGB", (30, 20), "red")
    watched = weakref.ref(picture)
    shelf.put("asked", picture)
    shelf.claim(["asked"])
    del picture
    gc.collect()
    make = shelf.maker("asked")
    shelf.release(["asked"])
    assert make().size == (30, 20)
    del make
    gc.collect()
    assert watched() is None


def test_an_upload_whose_request_never_comes(monkeypatch):
    """After a minute its bytes are given back; one that a request has stays, however long that takes."""
    now = 100.0
    monkeypatch.setattr(pictures.time, "monotonic", lambda: now)
    shelf = PictureShelf(1 << 20)
    shelf.put("refused", Upload(encoded(noise())))
    shelf.put("asked", Upload(encoded(noise())))
    shelf.claim(["asked"])
    now += 61
    shelf.put("new", Upload(encoded(noise())))
    assert [shelf.get(name) is not None for name in ("refused", "asked", "new")] == [False, True, True]
