"""Image files: reading any of them truthfully, naming them by content, writing them whole. Knows no project."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from . import png
from .errors import ImageError, StorageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif"})
MAX_PIXELS = 175_000_000  # 13,000 px square: more is a bomb or a scan nobody trains on; Pillow refuses from 179 million
ALPHA_BACKGROUND = (127, 127, 127)
EXIF_ORIENTATION = 0x0112
KEY_LENGTH = 16
READ_S = 2.0 if os.name == "nt" else 0.0  # how long a reader may hold a file: Windows replaces none that is open

_pillow_flags = threading.Lock()


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An upright 8-bit sRGB image and everything that was done to get there, in words for the user.

    `format`, `mode`: Pillow's names for what the file holds, whatever its suffix says. `width`: of the whole picture, px; more than the image
    has where it was decoded smaller.
    """

    image: Image.Image
    treatments: tuple[str, ...]
    format: str
    mode: str
    width: int


def content_key(data: bytes | Path) -> str:
    """First 16 hex digits of the SHA-256 of the bytes: the name under which labels and scores are kept."""
    digest = hashlib.sha256()
    if isinstance(data, Path):
        with data.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        digest.update(data)
    return digest.hexdigest()[:KEY_LENGTH]


def bytes_of(path: Path, key: str) -> bytes:
    """The bytes of a file that have this content key. They are read once: what is measured is what has the key.

    Raises:
        ImageError: the file cannot be read, or is no longer what had the key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read ({error.strerror or error}).") from error
    if content_key(content) != key:
        raise ImageError(f"{path.name} has changed on disk since it was listed; run the step before this one again.")
    return content


def value_key(value: Any) -> str:
    """Key of a JSON value: equal values have equal keys, whatever the order of their fields."""
    return content_key(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())


def open_image(path: Path, *, at_least: int = 0, content: bytes | None = None) -> OpenedImage:
    """Read a picture as an upright RGB image of 8 bits.

    `at_least`: the caller needs no more pixels than this on the longer side, which lets JPEG decode a smaller copy. `content`: the bytes of
    the file, if the caller has read them already.

    Raises:
        ImageError: empty, truncated, too large or no image; the text names the file and the way out.
    """
    try:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise ImageError(f"{path.name} is empty (0 bytes). Copy it again from where it came.")
        if not ImageFile.LOAD_TRUNCATED_IMAGES:
            return _decode(path, at_least, content)
        with _pillow_flags:  # another package (face_recognition does) made Pillow accept half files in the whole process
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            try:
                return _decode(path, at_least, content)
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
    except FileNotFoundError as error:
        raise ImageError(f"{path.name} is not there any more.") from error
    except PermissionError as error:
        raise ImageError(f"{path.name} cannot be read: no permission.") from error
    except UnidentifiedImageError as error:
        raise ImageError(_not_an_image(path)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path.name} has more than {MAX_PIXELS:,} pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path.name} is damaged and cannot be read completely ({error}). Copy it again from where it came.") from error


def _not_an_image(path: Path) -> str:
    if path.suffix.lower() in {".heic", ".heif"}:
        return (
            f"{path.name} is a HEIC photo, which this Python cannot read. Convert it to JPEG, or install pillow-heif in ComfyUI's Python."
        )
    return f"{path.name} is not an image Pillow can read. Remove it or convert it to PNG or JPEG."


def _decode(path: Path, at_least: int, content: bytes | None) -> OpenedImage:
    with Image.open(path if content is None else io.BytesIO(content)) as opened:
        format, mode = opened.format or "", opened.mode
        if opened.width * opened.height > MAX_PIXELS:
            raise ImageError(f"{path.name} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}. Scale it down first.")
        treatments: list[str] = []
        if format == "PNG" and (plain := png.decoded(path.read_bytes() if content is None else content)):
            plain = _to_srgb(plain, opened.info.get("icc_profile"), treatments)
            return OpenedImage(plain, tuple(treatments), format, mode, plain.width)
        if getattr(opened, "n_frames", 1) > 1:
            treatments.append(f"first of {getattr(opened, 'n_frames', 1)} frames taken")
        orientation = opened.getexif().get(EXIF_ORIENTATION, 1)
        turned = orientation in range(2, 9)
        width = opened.height if orientation in range(5, 9) else opened.width
        if at_least:
            opened.draft("RGB" if opened.mode != "L" else "L", (at_least, at_least))
        opened.load()  # rotates a TIFF, but no other format
        image: Image.Image = opened
        if turned:
            image = ImageOps.exif_transpose(opened)
            treatments.append("rotated as its EXIF says")
        image = _to_srgb(image, opened.info.get("icc_profile"), treatments)
        return OpenedImage(_to_rgb(image, treatments).copy(), tuple(treatments), format, mode, width)


def _to_srgb(image: Image.Image, profile: bytes | None, treatments: list[str]) -> Image.Image:
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        treatments.append("colour profile unreadable, colours taken as they are")
        return image
    treatments.append(f"colours converted from {name} to sRGB")
    return converted or image


def _to_rgb(image: Image.Image, treatments: list[str]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        treatments.append(f"{'32' if image.mode in ('I', 'F') else '16'}-bit grey scaled to 8 bits")
        return _scaled_to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        treatments.append("transparency laid on grey")
        rgba = image.convert("RGBA")
        backdrop = Image.new("RGBA", rgba.size, (*ALPHA_BACKGROUND, 255))
        return Image.alpha_composite(backdrop, rgba).convert("RGB")
    if image.mode not in ("L", "1"):
        treatments.append(f"{'palette' if image.mode == 'P' else image.mode} converted to RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    top = float(pixels.max(initial=0.0))
    full = 1.0 if image.mode == "F" and top <= 1.0 else 255.0 if top <= 255.0 else 65535.0 if top <= 65535.0 else top
    return Image.fromarray(np.clip(pixels * (255.0 / full), 0, 255).astype(np.uint8))


def size_for(width: int, height: int, *, megapixels: float, multiple: int = 16) -> tuple[int, int]:
    """Size of an edit, px: the same aspect, about `megapixels`, both sides multiples of 16 (latent patch 8 x packing 2)."""
    scale = (megapixels * 1_000_000 / (width * height)) ** 0.5
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (width, height))  # type: ignore[return-value]


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash. Two pictures whose hashes differ in at most 6 bits are near-duplicates."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Lossless bytes of an image. Level 1: a third of the time of the default for a tenth more bytes."""
    info = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, pnginfo=info)
    return buffer.getvalue()


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is there completely or not at all, even if the process is killed.

    `durable`: also after a power cut. False is for what can be made again and checks itself: waiting for the disk would hold others up.

    Raises:
        StorageError: the disk is full, read-only or not ours.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
        raise storage_error(path, error) from error


def _replace(partial: Path, path: Path) -> None:
    until = time.monotonic() + READ_S
    while True:
        try:
            os.replace(partial, path)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)


def storage_error(path: Path, error: OSError) -> StorageError:
    """The message a user can act on for what the operating system said about `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"The disk is full: {path} could not be written. Free some space and run again; everything finished is kept.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{path} could not be written: no permission. Make the folder writable and run again; everything finished is kept."
        )
    return StorageError(
        f"{path} could not be written ({error.strerror or error}). Run again once that is mended; everything finished is kept."
    )


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, written whole."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
