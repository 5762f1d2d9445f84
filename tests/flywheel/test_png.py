"""The short way through plain PNG files: the pixels that Pillow sees, and nobody's damaged file taken for whole."""

import io
import struct
import zlib

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import png
from comfyui_flenwheel.flywheel.errors import ImageError
from comfyui_flenwheel.flywheel.images import open_image
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from .conftest import picture

pytest.importorskip("av", reason="PyAV comes with ComfyUI; without it Pillow reads every file")
IMAGE = picture(3, (203, 117))


def saved(image: Image.Image = IMAGE, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **how)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def filtered(kind: int) -> bytes:
    """The rows of the picture with one of the five filters in each, which no encoder lets us choose."""
    rows, above = [], np.zeros((IMAGE.width, 3), np.int16)
    for row in np.asarray(IMAGE, dtype=np.int16):
        left = np.vstack([np.zeros((1, 3), np.int16), row[:-1]])
        corner = np.vstack([np.zeros((1, 3), np.int16), above[:-1]])
        guess = left + above - corner
        far = [np.abs(guess - other) for other in (left, above, corner)]
        paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))
        less = (0, left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((row - less) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(rows)


def holding(*streams: bytes) -> bytes:
    """A PNG file of the picture's size whose chunks are all whole, whatever is in them."""
    header = struct.pack(">IIBBBBB", *IMAGE.size, 8, 2, 0, 0, 0)
    return b"".join((png.SIGNATURE, chunk(b"IHDR", header), *(chunk(b"IDAT", stream) for stream in streams), chunk(b"IEND", b"")))


@pytest.mark.parametrize("kind", range(5), ids=["none", "sub", "up", "average", "paeth"])
def test_every_filter_gives_the_pixels_of_pillow(kind):
    content = holding(zlib.compress(filtered(kind)))
    with Image.open(io.BytesIO(content)) as theirs:
        assert np.array_equal(np.asarray(png.decoded(content)), np.asarray(theirs)) and np.array_equal(
            np.asarray(theirs), np.asarray(IMAGE)
        )


def test_words_and_a_colour_profile_do_not_keep_a_file_from_being_plain(tmp_path):
    words = PngInfo()
    words.add_text("prompt", "{}")
    words.add_itxt("flenwheel", "ü", zip=True)
    assert np.array_equal(np.asarray(png.decoded(saved(pnginfo=words))), np.asarray(IMAGE))
    path = tmp_path / "lab.png"
    path.write_bytes(saved(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
    assert png.decoded(path.read_bytes()) and np.array_equal(np.asarray(open_image(path).image), np.asarray(IMAGE))


def test_what_is_not_plain_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = PngInfo()
    turned.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    animated = saved(save_all=True, append_images=[picture(4, IMAGE.size)])
    others = [saved(IMAGE.convert(mode)) for mode in ("L", "P", "RGBA", "LA", "1")]
    for content in (*others, animated, saved(exif=exif), saved(pnginfo=turned), saved(transparency=(1, 2, 3)), b"", b"\xff\xd8\xff"):
        assert png.decoded(content) is None


def test_no_damage_goes_unseen(tmp_path):
    content, path = saved(), tmp_path / "damaged.png"
    assert png.decoded(content)
    for at in range(8, len(content), len(content) // 40):
        assert png.decoded(content[:at]) is None, "cut off"
        assert png.decoded(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]) is None, "a bit flipped"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="damaged"):
        open_image(path)


ROWS = filtered(1)
STREAM = zlib.compress(ROWS)
ROW = 1 + 3 * IMAGE.width
unfinished = zlib.compressobj()


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(ROWS[:-1]),
        zlib.compress(ROWS[: 50 * ROW]),
        zlib.compress(ROWS[:-ROW]),  # Pillow takes it for whole
        STREAM[:-10],
        STREAM[: len(STREAM) // 2],
        STREAM[:-4] + b"1234",
        b"\0\0" + STREAM[2:],
        b"",
        zlib.compress(ROWS[: 60 * ROW] + b"\x07" + ROWS[60 * ROW + 1 :]),
        zlib.compress(ROWS[:-ROW] + b"\x05" + ROWS[-ROW + 1 :]),
    ],
    ids=[
        "a byte short",
        "rows short",
        "the last row short",
        "cut",
        "cut in the middle",
        "wrong checksum",
        "no zlib",
        "nothing",
        "unknown filter",
        "unknown filter in the last row",
    ],
)
def test_pixels_that_are_not_whole_in_whole_chunks_are_named(tmp_path, stream):
    """FFmpeg decodes all of these but three and says nothing."""
    path = tmp_path / "face.png"
    path.write_bytes(holding(stream))
    with pytest.raises(ImageError, match=r"face\.png is damaged and cannot be read completely \(.+\)"):
        open_image(path)


@pytest.mark.parametrize(
    "streams",
    [
        (STREAM[:-4],),
        (unfinished.compress(ROWS) + unfinished.flush(zlib.Z_SYNC_FLUSH),),
        (STREAM + b"more",),
        (zlib.compress(ROWS + ROWS[:ROW]),),
    ],
    ids=["no checksum", "no end", "something behind", "a row too many"],
)
def test_pixels_that_are_whole_in_an_unusual_stream_are_left_to_pillow(tmp_path, streams):
    path = tmp_path / "face.png"
    path.write_bytes(holding(*streams))
    assert np.array_equal(np.asarray(open_image(path).image), np.asarray(IMAGE))


def test_a_stream_in_many_chunks_is_one_and_large_pictures_are_left_to_pillow(monkeypatch):
    content = holding(*(STREAM[at : at + 1000] for at in range(0, len(STREAM), 1000)))
    assert np.array_equal(np.asarray(png.decoded(content)), np.asarray(IMAGE))
    parted = content.replace(chunk(b"IDAT", STREAM[1000:2000]), chunk(b"tIME", bytes(7)) + chunk(b"IDAT", STREAM[1000:2000]))
    assert parted != content and png.decoded(parted) is None, "Pillow stops there"
    monkeypatch.setattr(png, "MOST_PIXELS", IMAGE.width * IMAGE.height - 1)
    assert png.decoded(content) is None


def test_without_pyav_pillow_reads(monkeypatch, tmp_path):
    path = tmp_path / "plain.png"
    path.write_bytes(saved())
    monkeypatch.setattr(png, "_av", lambda: None)
    assert png.decoded(path.read_bytes()) is None
    opened = open_image(path)
    assert np.array_equal(np.asarray(opened.image), np.asarray(IMAGE)) and opened.treatments == ()
