"""Plain PNG files, decoded by FFmpeg (PyAV, which ComfyUI brings) to the pixels that Pillow sees, in half the time: Pillow undoes the filters of a
row byte by byte. Everything that is not plain, or not whole, is left to Pillow and its words."""

from __future__ import annotations

import importlib
import struct
import zlib
from functools import cache
from typing import Any

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
HARMLESS = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"iCCP", *TEXTS})
TURNING = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that may say how the picture is turned
PLAIN = (8, 2, 0, 0, 0)  # 8 bits, RGB, deflate, the five filters, not interlaced


def decoded(content: bytes) -> Image.Image | None:
    """The picture in a PNG file of 8-bit RGB without transparency, rotation or animation, its colours as they are stored; None for any other or
    damaged file, and where PyAV is missing."""
    av = _av()
    if av is None or not _is_plain_and_whole(content):
        return None
    decoder = av.CodecContext.create("png", "r")
    decoder.thread_count = 1
    try:
        frames = decoder.decode(av.Packet(content))
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


def _is_plain_and_whole(content: bytes) -> bool:
    """Whether every chunk is there, undamaged (FFmpeg would not say), and none of them changes what is shown."""
    if not content.startswith(SIGNATURE):
        return False
    view, at = memoryview(content), len(SIGNATURE)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", view, at)
        body, end = at + 8, at + 8 + length
        if kind not in HARMLESS or end + 4 > len(content) or zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", view, end)[0]:
            return False
        if kind == b"IHDR" and (length != 13 or tuple(view[body + 8 : end]) != PLAIN):
            return False
        if kind in TEXTS and content.startswith(TURNING, body):
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False
