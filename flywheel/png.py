"""Plain PNG files, decoded by FFmpeg (PyAV, which ComfyUI brings) to the pixels that Pillow sees, in two thirds of the time: Pillow undoes the
filters of a row byte by byte. Everything that is not plain, or not whole, is left to Pillow and its words.

FFmpeg says nothing, by error, flag or option, of rows that are missing or filtered in an unknown way: the picture then shows what lay in memory
before (PyAV 18, FFmpeg 8, also with err_detect at its strictest). So the pixels are inflated here, where their length and the filter of each row are
seen, and FFmpeg gets them again as blocks that need no inflating, with the checksum of the file, which it compares: half a millisecond more a
megapixel, of twelve.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
HARMLESS = frozenset({b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"iCCP", *TEXTS})
TURNING = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that may say how the picture is turned
PLAIN = (8, 2, 0, 0, 0)  # 8 bits, RGB, deflate, the five filters, not interlaced
FILTERS = 5
MOST_PIXELS = 50_000_000  # larger pictures, three times in memory meanwhile, would take more than their speed is worth
BLOCK = 65_535  # the longest that deflate stores as it is


@dataclass(frozen=True, slots=True)
class _Plain:
    """A PNG file whose chunks are all there and undamaged, of the plain kind. `header`: IHDR. `stream`: the compressed pixels, zlib."""

    header: bytes
    stream: bytes

    @property
    def size(self) -> tuple[int, int]:
        width, height = struct.unpack_from(">II", self.header)
        return width, height


def decoded(content: bytes) -> Image.Image | None:
    """The picture in a PNG file of 8-bit RGB without transparency, rotation or animation, its colours as they are stored; None for any other or
    damaged file, and where PyAV is missing.

    Raises:
        ValueError: the pixels end before the last row, which Pillow does not always see.
    """
    av = _av()
    plain = _plain(content) if av else None
    rewritten = _uncompressed(plain) if plain else None
    if rewritten is None:
        return None
    decoder = av.CodecContext.create("png", "r")
    decoder.thread_count = 1
    try:
        frames = decoder.decode(av.Packet(rewritten))
    except (av.error.FFmpegError, ValueError, MemoryError):
        return None
    if len(frames) != 1 or frames[0].format.name != "rgb24":
        return None
    return Image.fromarray(frames[0].to_ndarray())


@cache
def _av() -> Any:
    try:
        return importlib.import_module("av")
    except (ImportError, OSError):
        return None


def _plain(content: bytes) -> _Plain | None:
    """The file, where every chunk is there and undamaged (FFmpeg would not say) and none of them changes what is shown."""
    header, stream, before = b"", [], b""
    for kind, body in _chunks(content):
        if not header:
            if kind != b"IHDR" or len(body) != 13 or tuple(body[8:]) != PLAIN:
                return None
            header = bytes(body)
        elif kind not in HARMLESS or (kind in TEXTS and bytes(body[: len(max(TURNING, key=len))]).startswith(TURNING)):
            return None
        elif kind == b"IDAT":
            if stream and before != b"IDAT":
                return None
            stream.append(body)
        elif kind == b"IEND":
            return _Plain(header, b"".join(stream))
        before = kind
    return None


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk, up to the end or to the first that is damaged."""
    view, at = memoryview(content), len(SIGNATURE)
    while content.startswith(SIGNATURE) and at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", view, at)
        body, end = at + 8, at + 8 + length
        if end + 4 > len(content) or zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", view, end)[0]:
            return
        yield kind, view[body:end]
        at = end + 4


def _uncompressed(plain: _Plain) -> bytes | None:
    """The same file with nothing but its pixels, not compressed any more; None where they are not whole.

    Raises:
        ValueError: as `decoded`.
    """
    (width, height), stream = plain.size, memoryview(plain.stream)
    if (
        not 0 < width * height <= MOST_PIXELS
        or len(stream) < 2
        or stream[0] & 15 != 8
        or stream[1] & 32
        or (stream[0] << 8 | stream[1]) % 31
    ):
        return None  # the last three: zlib's header
    length = height * (1 + 3 * width)
    inflating = zlib.decompressobj(wbits=-zlib.MAX_WBITS)  # no header, no checksum
    try:
        rows = inflating.decompress(stream[2:], length + 1)
    except zlib.error:
        return None
    checksum = inflating.unused_data[:4]
    if len(rows) < length:
        raise ValueError("its pixels end before the last row")
    if not inflating.eof or len(rows) != length or len(checksum) != 4:
        return None
    if np.frombuffer(rows, np.uint8)[:: 1 + 3 * width].max() >= FILTERS:
        return None
    pixels = b"".join((plain.stream[:2], *_stored(rows), checksum))
    return b"".join((SIGNATURE, *_written(b"IHDR", plain.header), *_written(b"IDAT", pixels), *_written(b"IEND", b"")))


def _stored(rows: bytes) -> Iterator[bytes | memoryview]:
    """Deflate's blocks of bytes as they are."""
    view = memoryview(rows)
    for start in range(0, len(rows), BLOCK):
        block = view[start : start + BLOCK]
        yield struct.pack("<BHH", start + BLOCK >= len(rows), len(block), len(block) ^ 0xFFFF)
        yield block


def _written(kind: bytes, body: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(body)), kind, body, bytes(4)  # FFmpeg does not look at a chunk's checksum
