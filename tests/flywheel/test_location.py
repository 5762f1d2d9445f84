"""Real files of each format with a place in each kind of metadata; exiftool is not needed, Pillow reads them back."""

import io
import struct
import zlib

import pytest
from comfyui_flenwheel.flywheel.location import PNG_HEAD, Unclear, names_a_place, without_metadata
from PIL import Image, ImageCms

from .conftest import picture

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description exif:GPSLatitude="52,31.2N"/></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GPS = 0x8825


def exif(*, place: bool = True, version_only: bool = False) -> Image.Exif:
    made = Image.Exif()
    made[0x010F] = "A camera"
    if place:
        made.get_ifd(GPS).update({0: b"\x02\x03\x00\x00"} if version_only else {0: b"\x02\x03\x00\x00", 1: "N", 2: (52.0, 31.0, 12.0)})
    return made


def saved(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture(3, (640, 480)).save(buffer, format, icc_profile=PROFILE, **options)
    return buffer.getvalue()


def app(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    return jpeg[:2] + segment + jpeg[2:]


def with_chunk(png: bytes, added: bytes) -> bytes:
    return png[:-12] + added + png[-12:]


IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0b" + b"\x1c\x02\x5a\x00\x06Berlin" + b"\0"
RAW_EXIF = b"\nexif\n   %8d\n%s\n"


def raw_profile() -> bytes:
    data = b"Exif\0\0" + exif().tobytes().removeprefix(b"Exif\0\0")
    return b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF % (len(data), data.hex().encode()))


PLACES = {
    "jpeg exif": ("JPEG", saved("JPEG", exif=exif())),
    "jpeg exif, progressive": ("JPEG", saved("JPEG", exif=exif(), progressive=True)),
    "jpeg exif, restarts": ("JPEG", saved("JPEG", exif=exif(), restart_marker_blocks=4, subsampling=0)),
    "jpeg xmp": ("JPEG", with_segment(saved("JPEG"), app(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))),
    "jpeg iptc": ("JPEG", with_segment(saved("JPEG"), app(0xED, IPTC))),
    "jpeg second picture": ("JPEG", saved("JPEG") + saved("JPEG", exif=exif())),
    "png exif": ("PNG", saved("PNG", exif=exif())),
    "png xmp": ("PNG", with_chunk(saved("PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))),
    "png deflated xmp": ("PNG", with_chunk(saved("PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(XMP)))),
    "png raw profile": ("PNG", with_chunk(saved("PNG"), chunk(b"zTXt", raw_profile()))),
    "webp exif": ("WEBP", saved("WEBP", exif=exif(), lossless=True)),
    "webp xmp": ("WEBP", saved("WEBP", xmp=XMP)),
}
NONE = {
    "jpeg": ("JPEG", saved("JPEG")),
    "jpeg, camera only": ("JPEG", saved("JPEG", exif=exif(place=False))),
    "jpeg, gps version only": ("JPEG", saved("JPEG", exif=exif(version_only=True))),
    "png": ("PNG", saved("PNG")),
    "png with a graph": ("PNG", with_chunk(saved("PNG"), chunk(b"tEXt", b"prompt\0{}"))),
    "webp": ("WEBP", saved("WEBP", exif=exif(place=False))),
    "empty": ("JPEG", b""),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_found_and_taken_out_and_no_pixel_changes(name):
    format, content = PLACES[name]
    assert names_a_place(content, format)
    clean = without_metadata(content, format)
    assert not names_a_place(clean, format) and b"A camera" not in clean
    before, after = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(clean))
    assert after.format == before.format == format and after.tobytes() == before.tobytes()
    assert after.info["icc_profile"] == before.info["icc_profile"], "the colours mean the same"
    assert not after.getexif() and without_metadata(clean, format) == clean


@pytest.mark.parametrize("name", NONE)
def test_no_place_is_seen_where_there_is_none(name):
    format, content = NONE[name]
    assert not names_a_place(content, format)


def test_the_compressed_picture_stays_byte_for_byte():
    plain = saved("JPEG")
    assert without_metadata(saved("JPEG", exif=exif()), "JPEG") == without_metadata(plain, "JPEG")
    scan = plain[plain.index(b"\xff\xda") :]
    assert without_metadata(saved("JPEG", exif=exif()), "JPEG").endswith(scan)
    assert without_metadata(plain + b"a film behind the picture", "JPEG").endswith(scan)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_file_is_refused_at_any_cut(format):
    content = PLACES[f"{format.lower()} exif"][1]
    for cut in (0, 3, 9, 30, 200, len(content) // 2):
        broken = content[:cut]
        names_a_place(broken, format)
        with pytest.raises(Unclear):
            without_metadata(broken, format)
    with pytest.raises(Unclear):
        without_metadata(PNG_HEAD, "TIFF")
