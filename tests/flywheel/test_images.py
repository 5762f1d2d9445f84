import contextlib
import io
import os

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import images
from comfyui_flenwheel.flywheel.errors import ImageError, StorageError
from comfyui_flenwheel.flywheel.images import (
    ALPHA_BACKGROUND,
    EXIF_ORIENTATION,
    content_key,
    difference_hash,
    open_image,
    png_bytes,
    size_for,
    value_key,
    write_whole,
)
from PIL import Image, ImageCms, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from .conftest import picture


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = value
    return exif


# --- what is refused


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("accepting", [False, True], ids=["strict Pillow", "lenient Pillow"])
def test_a_truncated_file_is_refused(tmp_path, monkeypatch, format, accepting):
    """Also where another package has told Pillow to accept half files, which stays as that package wants it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", accepting)
    buffer = io.BytesIO()
    picture(1, (300, 200)).save(buffer, format)
    path = tmp_path / f"half.{format.lower()}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"half\.") as caught:
        open_image(path)
    assert "Copy it again" in str(caught.value) or "not an image" in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is accepting


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.png", b"I am no picture, I am a text", "not an image"),
        ("zeros.jpg", bytes(4000), "not an image"),
        ("page.webp", b"<!DOCTYPE html><html></html>", "not an image"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "head.png"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    for options in ({}, {"content": content}):
        with pytest.raises(ImageError, match=words):
            open_image(tmp_path / name, **options)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match="not there"):
        open_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png"):
        open_image(tmp_path / "folder.png")


@pytest.mark.parametrize("side", [15_000, 20_000])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    """15,000 px square is over our limit, 20,000 over Pillow's: 400 million pixels in a few kilobytes."""
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")


# --- what is mended, in words


def test_a_plain_photo_is_taken_as_it_is(tmp_path):
    picture(1, (300, 200)).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    assert opened.treatments == () and (opened.format, opened.mode) == ("PNG", "RGB") and opened.image.mode == "RGB"
    assert np.array_equal(pixels(opened.image), pixels(picture(1, (300, 200))))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_exif_rotation_comes_out_upright(tmp_path, suffix, orientation):
    upright = Image.new("RGB", (96, 64), "white")
    upright.paste("red", (0, 0, 48, 32))
    upright.paste("blue", (48, 32, 96, 64))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Transpose that a camera would have applied
    path = tmp_path / f"turned.{suffix}"
    upright.transpose(Image.Transpose(undo)).save(path, exif=oriented(orientation))
    opened = open_image(path)
    assert opened.treatments == ("rotated as its EXIF says",) and opened.image.size == (96, 64)
    assert np.abs(pixels(opened.image) - pixels(upright)).mean() < 4
    assert opened.image.getexif().get(EXIF_ORIENTATION, 1) == 1  # written out again it is not turned twice


@pytest.mark.parametrize("top", [4095, 65535])
def test_16_bit_grey_keeps_its_tones(tmp_path, top):
    """A 12-bit scan in a 16-bit file uses only the lower values; it is not stretched, for nobody said that it may be."""
    ramp = np.linspace(0, top, 256, dtype=np.uint16)[None].repeat(8, axis=0)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    opened = open_image(tmp_path / "scan.png")
    assert opened.treatments == ("16-bit grey scaled to 8 bits",)
    assert np.abs(pixels(opened.image)[0, :, 0] - ramp[0] / 257).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix", "treatment"),
    [
        ("CMYK", "jpg", "CMYK converted to RGB"),
        ("P", "png", "palette converted to RGB"),
        ("P", "gif", "palette converted to RGB"),
        ("L", "png", None),
        ("1", "png", None),
        ("RGBA", "png", "transparency laid on grey"),
        ("LA", "png", "transparency laid on grey"),
        ("F", "tif", "32-bit grey scaled to 8 bits"),
    ],
)
def test_every_mode_becomes_rgb_and_says_so(tmp_path, mode, suffix, treatment):
    image = picture(2, (120, 80)).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    opened = open_image(tmp_path / f"a.{suffix}")
    assert opened.image.mode == "RGB" and opened.treatments == ((treatment,) if treatment else ())
    assert np.abs(pixels(opened.image) - pixels(image)).mean() < 12


def test_transparency_shows_grey_whatever_colour_lies_under_it(tmp_path):
    image = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    image.quantize().save(tmp_path / "palette.png")
    Image.new("RGB", (40, 20), (9, 9, 9)).save(tmp_path / "keyed.png", transparency=(9, 9, 9))
    for name in ("a.png", "palette.png", "keyed.png"):
        opened = open_image(tmp_path / name)
        assert opened.image.getpixel((0, 0)) == ALPHA_BACKGROUND and "transparency laid on grey" in opened.treatments
    assert open_image(tmp_path / "a.png").image.getpixel((30, 10)) == (0, 255, 0)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        opened = open_image(tmp_path / f"a.{suffix}")
        assert "first of 3 frames taken" in opened.treatments and opened.image.getpixel((5, 5)) == (255, 0, 0)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    picture(1).save(tmp_path / "photo.png", "JPEG")
    assert open_image(tmp_path / "photo.png").format == "JPEG"


def test_colours_are_converted_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = picture(1)
    image.save(tmp_path / "srgb.png", icc_profile=lab.tobytes())
    assert open_image(tmp_path / "srgb.png").treatments == ()
    image.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    opened = open_image(tmp_path / "broken.png")
    assert opened.treatments == ("colour profile unreadable, colours taken as they are",)
    assert np.array_equal(pixels(opened.image), pixels(image))


def test_huge_photos_open_and_jpeg_may_come_smaller(tmp_path):
    Image.new("RGB", (6000, 6000), "teal").save(tmp_path / "huge.jpg")
    assert open_image(tmp_path / "huge.jpg").image.size == (6000, 6000)
    assert open_image(tmp_path / "huge.jpg", at_least=700).image.size == (750, 750)


def test_names_of_any_kind(tmp_path):
    for name in ("ein Foto mit Leerzeichen.PNG", "Анна 写真 🎉.png", "a'b\"c.png"):
        picture(1).save(tmp_path / name)
        assert open_image(tmp_path / name).image.size == (64, 48)


def test_bytes_that_were_read_already(tmp_path):
    assert open_image(tmp_path / "not on disk.png", content=png_bytes(picture(1))).image.size == (64, 48)


# --- names and writing


def test_keys(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert content_key(tmp_path / "a") == content_key(b"abc" * 1_000_000) and len(content_key(b"")) == 16
    assert value_key({"a": 1, "b": [2]}) == value_key({"b": [2], "a": 1}) != value_key({"a": 1, "b": [3]})


def test_png_bytes_are_lossless_deterministic_and_carry_text():
    image = picture(1)
    png = png_bytes(image, {"prompt": "Ä 写"})
    again = Image.open(io.BytesIO(png))
    assert again.info["prompt"] == "Ä 写" and np.array_equal(pixels(again), pixels(image)) and png == png_bytes(image, {"prompt": "Ä 写"})
    assert isinstance(PngInfo(), PngInfo)


@pytest.mark.parametrize(("size", "megapixels"), [((3000, 2000), 1.0), ((100, 3000), 1.0), ((5, 5000), 0.25)])
def test_sizes_of_edits_fit_the_latents(size, megapixels):
    width, height = size_for(*size, megapixels=megapixels)
    assert width % 16 == height % 16 == 0 and min(width, height) >= 16


def test_difference_hash_sees_the_picture_not_the_file(tmp_path):
    image = picture(1, (640, 480))
    image.save(tmp_path / "a.jpg", quality=20)
    same, other = Image.open(tmp_path / "a.jpg"), picture(2, (640, 480))
    apart = [(difference_hash(image) ^ difference_hash(shown)).bit_count() for shown in (same, other, ImageOps.mirror(image))]
    assert apart[0] <= 6 < min(apart[1:])


@pytest.mark.parametrize(("patience_s", "whole"), [(60.0, True), (0.0, False)])
def test_a_file_that_windows_holds_while_it_is_read_is_replaced_when_it_was_read(tmp_path, monkeypatch, patience_s, whole):
    refused, replace = [], os.replace

    def held(source, target):
        if not refused:
            refused.append(target)
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(images, "READ_S", patience_s)
    with contextlib.nullcontext() if whole else pytest.raises(StorageError, match="no permission"):
        write_whole(tmp_path / "a.bin", b"new")
    assert refused and [path.name for path in tmp_path.iterdir()] == (["a.bin"] if whole else [])


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "new folder" / "a.bin", b"one")
    write_whole(tmp_path / "new folder" / "a.bin", b"two")
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.bin"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"a\.bin"):
        write_whole(tmp_path / "file" / "a.bin", b"x")
