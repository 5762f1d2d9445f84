"""The place where a photograph was taken, in its metadata: finding it, and leaving it out without touching a pixel.

Phones write it as EXIF GPS, photo programs also as XMP and IPTC. Where one of them names a place, all metadata that is not needed to show the
picture goes: a camera's own notes may repeat the place, and nobody can read them all. The compressed picture stays byte for byte.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

EXIF = b"Exif\0\0"
GPS_POINTER, GPS_VERSION = 0x8825, 0  # tags: where the GPS directory is; its only entry that says nothing of a place
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
WEBP_METADATA = frozenset({b"EXIF", b"XMP "})
WEBP_FLAGS = 0x08 | 0x04  # of the VP8X chunk: has EXIF, has XMP
TIFF_MAX = 1 << 20  # bytes looked at of one EXIF block

_XMP = re.compile(
    rb"GPSL(?:atitude|ongitude)|photoshop:(?:City|State|Country)|Iptc4xmp(?:Core|Ext):(?:Location|City|CountryCode|Sublocation)"
)
_IPTC = re.compile(rb"\x1c\x02[\x1a\x1b\x5a\x5c\x5f\x64\x65]")  # content location, city, sublocation, province, country
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # inside a scan a 00 or a restart number follows every FF


class Unclear(ValueError):
    """The file is not built as its format says, so nothing can be taken out of it safely."""


def names_a_place(content: bytes, format: str) -> bool:
    """Whether the file says where it was taken. `format`: Pillow's name of it. Also looks behind the picture, where phones put a second one."""
    if any(_has_gps(content[at : at + TIFF_MAX]) for at in _after_each(EXIF, content)) or _in_xmp(content):
        return True
    try:
        return any(_tells(name, block) for name, block in _metadata(content, format))
    except Unclear:
        return False


def without_metadata(content: bytes, format: str) -> bytes:
    """The file with its compressed picture, colour profile and nothing else.

    Raises:
        Unclear: the format is none of JPEG, PNG and WebP, or the file is damaged.
    """
    if format == "JPEG":
        return b"".join(_picture_of_jpeg(content))
    if format == "PNG":
        return PNG_HEAD + b"".join(chunk for name, chunk in _png_chunks(content) if name not in PNG_METADATA)
    if format == "WEBP":
        body = b"WEBP" + b"".join(_shown(name, chunk) for name, chunk in _webp_chunks(content) if name not in WEBP_METADATA)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    raise Unclear(f"metadata of {format or 'this format'} cannot be taken out")


def _after_each(words: bytes, content: bytes) -> Iterator[int]:
    at = -1
    while (at := content.find(words, at + 1)) >= 0:
        yield at + len(words)


def _in_xmp(content: bytes) -> bool:
    return b"rdf:" in content and bool(_XMP.search(content))  # the first is thirty times faster and nearly always enough


def _has_gps(tiff: bytes) -> bool:
    """Whether the first directory of EXIF data leads to one with GPS entries."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    try:
        entries = dict(_directory(tiff, order, struct.unpack_from(f"{order}I", tiff, 4)[0]))
        return GPS_POINTER in entries and any(tag != GPS_VERSION for tag, _ in _directory(tiff, order, entries[GPS_POINTER]))
    except struct.error:  # a directory beyond the end of the data holds nothing
        return False


def _directory(tiff: bytes, order: str, offset: int) -> Iterator[tuple[int, int]]:
    """Tag and value of each entry."""
    for number in range(struct.unpack_from(f"{order}H", tiff, offset)[0]):
        tag, _, _, value = struct.unpack_from(f"{order}HHII", tiff, offset + 2 + 12 * number)
        yield tag, value


def _metadata(content: bytes, format: str) -> Iterator[tuple[bytes, bytes]]:
    """The blocks that may name a place and that a search of the whole file does not see."""
    if format == "JPEG":
        for marker, segment in _jpeg_segments(content):
            if marker == 0xED:
                yield b"IPTC", segment
    elif format == "PNG":
        for name, chunk in _png_chunks(content):
            if name in PNG_METADATA:
                yield name, chunk[8:-4]
    elif format == "WEBP":
        for name, chunk in _webp_chunks(content):
            if name in WEBP_METADATA:
                yield name, chunk[8:]


def _tells(name: bytes, block: bytes) -> bool:
    if name == b"IPTC":
        return bool(_IPTC.search(block))
    if name in (b"eXIf", b"EXIF"):
        return _has_gps(block)
    if name in (b"zTXt", b"iTXt", b"tEXt"):
        return _in_text(block)
    return _in_xmp(block)


def _in_text(block: bytes) -> bool:
    """PNG text: XMP as it is or deflated, and ImageMagick's "Raw profile type exif" in hexadecimal digits."""
    keyword, _, rest = block.partition(b"\0")
    texts = [rest]
    with suppress(zlib.error):  # deflated text begins with an x, behind flags and a language; plain text may hold one too
        texts.append(zlib.decompressobj().decompress(rest[max(0, rest.find(b"\x78")) :], TIFF_MAX))
    if keyword.startswith(b"Raw profile type"):
        digits = [re.sub(rb"[^0-9a-fA-F]", b"", text.partition(b"exif")[2].lstrip().partition(b"\n")[2]) for text in texts]
        profiles = [bytes.fromhex(text[: len(text) // 2 * 2].decode()) for text in digits]
        return any(_has_gps(profile.removeprefix(EXIF)) or _IPTC.search(profile) for profile in profiles)
    return any(_in_xmp(text) for text in texts)


# --- how the formats are built


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and whole segment (FF, marker, length, data) up to the first scan."""
    if content[:2] != b"\xff\xd8":
        raise Unclear("not a JPEG")
    at = 2
    while True:
        while content[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 4 > len(content) or content[at] != 0xFF:
            raise Unclear("a JPEG segment is damaged")
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(content):
            raise Unclear("a JPEG segment is damaged")
        yield marker, content[at : at + 2 + length]
        if marker == 0xDA:
            return
        at += 2 + length


def _picture_of_jpeg(content: bytes) -> Iterator[bytes]:
    """What is needed to show the picture, from the first marker to the end of image; what lies behind it goes."""
    yield content[:2]
    head = 2
    for marker, segment in _jpeg_segments(content):
        head = content.index(segment, head) + len(segment)
        if _is_shown(marker, segment):
            yield segment
    at = head
    while found := _MARKER.search(content, at):
        yield content[at : found.start()]
        marker, start = found[1][0], found.end() - 2
        if marker == 0xD9:
            yield content[start : found.end()]
            return
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if end <= start + 3 or end > len(content):
            raise Unclear("a JPEG segment is damaged")
        if _is_shown(marker, content[start:end]):
            yield content[start:end]
        at = end
    raise Unclear("the JPEG has no end")


def _is_shown(marker: int, segment: bytes) -> bool:
    """Whether a segment has a part in how the picture looks: everything but comments and the data of applications, of which three do."""
    if marker == 0xE2:
        return segment[4:].startswith(b"ICC_PROFILE\0")
    return marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE)  # E0: JFIF, EE: Adobe's colour transform


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and whole chunk (length, name, data, checksum) up to the end of the picture."""
    if not content.startswith(PNG_HEAD):
        raise Unclear("not a PNG")
    at = len(PNG_HEAD)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        if end > len(content):
            raise Unclear("a PNG chunk is damaged")
        yield name, content[at:end]
        if name == b"IEND":
            return
        at = end
    raise Unclear("the PNG has no end")


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and whole chunk (name, length, data, padding)."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise Unclear("not a WebP")
    at, stop = 12, 8 + int.from_bytes(content[4:8], "little")
    if stop > len(content):
        raise Unclear("the WebP has no end")
    while at + 8 <= stop:
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if at + 8 + length > stop:
            raise Unclear("a WebP chunk is damaged")
        yield content[at : at + 4], content[at:end]
        at = end


def _shown(name: bytes, chunk: bytes) -> bytes:
    """A chunk that stays; the one that announces metadata announces none."""
    return chunk if name != b"VP8X" else chunk[:8] + bytes([chunk[8] & ~WEBP_FLAGS]) + chunk[9:]
