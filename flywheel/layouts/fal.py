"""fal's trainers: one zip with ROOT_start.png, ROOT_start2.png …, ROOT_end.png, ROOT.txt; ROOT.png and ROOT.txt for captioned images."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from ..errors import DatasetError, ImageError
from ..images import MAX_PIXELS, open_image, png_bytes, write_whole
from ..pair_slots import Slot, match_key
from .manifest import Found, Item, Layout, Manifest, Out, Source, slot_names

ARCHIVE = "dataset.zip"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same bytes on every day
_MEMBER = re.compile(r"(?:[^/\\]+/)?([^/\\]+?)(_start(\d*)|_end|)\.(png|jpe?g|webp|txt)", re.IGNORECASE)
MOST_BYTES = 4 * MAX_PIXELS  # of one member, unpacked


def write(manifest: Manifest, out: Out) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # PNGs do not shrink
        for item in manifest.items:
            for name, picture in _pictures(item):
                try:
                    content = out.pixels(picture, item.target)
                except ImageError as error:
                    out.problems.append(str(error))
                    continue
                if content is None:  # written anew: the zip leaves this machine, and a PNG may hold prompts and workflows
                    content = png_bytes(open_image(Path(picture.path)).image)
                archive.writestr(_member(name), content)
            archive.writestr(_member(f"{item.id}.txt"), item.caption + "\n")
    out.names.append(ARCHIVE)
    path = out.folder / ARCHIVE
    if not out.problems and not (path.is_file() and path.read_bytes() == buffer.getvalue()):
        write_whole(path, buffer.getvalue())


def _pictures(item: Item) -> list[tuple[str, Source]]:
    if not item.controls:
        return [(f"{item.id}.png", item.target)]
    starts = [(f"{item.id}_start{number if number > 1 else ''}.png", control) for number, control in enumerate(item.controls, 1)]
    return [*starts, (f"{item.id}_end.png", item.target)]


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, LONG_AGO)


def read(folder: Path, unpack_to: Path) -> Found:
    archive = _archive(folder)
    if archive is None:
        raise DatasetError(f"There is no zip archive in {folder}.")
    try:
        with zipfile.ZipFile(archive) as opened:
            return _unpacked(opened, archive, unpack_to)
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{archive} is no readable zip archive ({error}).") from error


def _unpacked(opened: zipfile.ZipFile, archive: Path, folder: Path) -> Found:
    slots: dict[int, Slot] = {0: Slot(folder, "target", {})}
    problems: list[tuple[str, str]] = []
    for member in opened.infolist():
        found = _MEMBER.fullmatch(member.filename)
        if member.is_dir() or member.filename.startswith("__MACOSX/"):
            continue
        if found is None:
            slots[0].notes.append(f"{archive.name}: {member.filename} not used.")
            continue
        if member.file_size > MOST_BYTES:
            problems.append(("", f"{archive.name}: {member.filename} has {member.file_size:,} bytes unpacked, more than any picture"))
            continue
        root, kind, number, suffix = found[1], found[2].lower(), found[3], found[4].lower()
        path = folder / f"{root}{kind}.{suffix}"
        if Path(path.name).name != path.name or root in (".", ".."):
            raise DatasetError(f"{archive.name}: {member.filename!r} is no plain file name.")
        write_whole(path, opened.read(member))
        key = match_key(root)
        if suffix == "txt":
            slots[0].texts.setdefault(key, []).append(path)
            continue
        slot = int(number or 1) if kind.startswith("_start") else 0
        slots.setdefault(slot, Slot(folder, f"control_{slot}", {})).files.setdefault(key, []).append(path)
        slots[slot].stems[key] = root
    names = slot_names(max(slots))
    return Found(tuple(slots.get(number, Slot(folder, name, {})) for number, name in enumerate(names)), {}, tuple(problems))


def _archive(folder: Path) -> Path | None:
    if folder.suffix.lower() == ".zip" and folder.is_file():
        return folder
    found = sorted(folder.glob("*.zip")) if folder.is_dir() else []
    return folder / ARCHIVE if folder / ARCHIVE in found else found[0] if len(found) == 1 else None


LAYOUT = Layout(
    "fal zip",
    "One zip with ROOT_start.png, ROOT_start2.png …, ROOT_end.png, ROOT.txt.",
    range(4),
    write,
    read,
    lambda folder: _archive(folder) is not None,
)
