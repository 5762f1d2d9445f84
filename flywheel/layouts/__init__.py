"""One manifest, every trainer: writing a dataset in the layout of a trainer, and reading it back. One file per layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import DatasetError
from ..images import value_key, write_whole
from ..pair_slots import match_key
from ..pairs import OnProblem, PairedDataset, pair_up
from . import aitoolkit, diffsynth, diffusers, fal, imagefolder, kohya, mflux, musubi
from .manifest import MANIFEST, Layout, Manifest, Out, Settings, file_name, load_manifest, plan

__all__ = ["LAYOUTS", "Exported", "Layout", "Manifest", "Settings", "export", "import_dataset", "load_manifest", "plan"]

LAYOUTS: Mapping[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (kohya, musubi, aitoolkit, mflux, diffusers, diffsynth, fal, imagefolder)
}
_RECOGNISED = (imagefolder, diffsynth, musubi, kohya, mflux, diffusers, aitoolkit, fal)  # what is told apart most surely comes first


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a dataset was written, and in words what was done to its pictures."""

    folder: Path
    examples: int
    files: int
    notes: tuple[str, ...]

    def text(self) -> str:
        return "\n".join([f"{self.examples} examples, {self.files} files in {self.folder}", *self.notes])


def export(manifest: Manifest, home: Path, layout: str, settings: Settings | None = None) -> Exported:
    """Write a dataset below `home`, into a folder named by its content: what a trainer has cached there can never be of another dataset.

    The same manifest with the same settings gives the same folder, byte for byte. manifest.json is written last and maps the names back.

    Raises:
        DatasetError: the layout cannot hold so many controls, a picture is gone, changed or damaged, or an exported text was edited by hand.
        StorageError: the disk refused.
    """
    settings = settings or Settings()
    chosen = LAYOUTS[layout]
    if len(manifest.slots) not in chosen.controls:
        able = [name for name, other in LAYOUTS.items() if len(manifest.slots) in other.controls]
        raise DatasetError(
            f"{layout} holds at most {chosen.controls[-1]} control images per example and this dataset has {len(manifest.slots)}."
            f" Layouts that can: {', '.join(able)}."
        )
    key = value_key([manifest.key(), asdict(settings), layout])[:8]
    folder = home / f"{file_name(manifest.name)}-{file_name(layout)}-{key}"
    out = Out(folder.resolve(), settings)
    chosen.write(manifest, out)
    if out.problems:
        raise DatasetError(f"{manifest.name!r} cannot be exported:", out.problems)
    described = {**manifest.described(), "layout": layout, "settings": asdict(settings), "files": sorted(out.names), "treated": out.treated}
    write_whole(folder / MANIFEST, (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())
    notes = [f"{out.linked} pictures are links to the originals, not copies."] if out.linked else []
    notes += [f"{name}: {treated}." for name, treated in list(out.treated.items())[:20]]
    notes += [f"… and {len(out.treated) - 20} more pictures were treated, see {MANIFEST}."] if len(out.treated) > 20 else []
    return Exported(folder, len(manifest.items), len(out.names) + 1, tuple(notes))


def import_dataset(
    folder: Path,
    layout: str = "",
    *,
    name: str = "",
    unpack_to: Path | None = None,
    labels: Sequence[str] = (),
    instruction: str = "",
    on_problem: OnProblem = "refuse",
) -> PairedDataset:
    """Read a dataset that lies in a trainer's layout, ours or not; "" recognises the layout. Old names come back where our manifest is there.

    Raises:
        DatasetError: not recognised, or its files do not fit together; every problem at once.
    """
    if not folder.exists():
        raise DatasetError(f"There is no {folder}.")
    chosen = LAYOUTS[layout] if layout else recognised(folder)
    found = chosen.read(folder, unpack_to or folder.with_name(f"{folder.stem}-unpacked"))
    manifest = load_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest and len(found.slots) != 1 + len(manifest.slots):
        raise DatasetError(
            f"{folder} was exported with {len(manifest.slots)} controls and holds {len(found.slots) - 1}: a whole slot was lost, and the next one"
            f" would have slipped into its place. Export it again; or delete its {MANIFEST} if that is meant."
        )
    dataset = pair_up(
        list(found.slots),
        name=name or (manifest.name if manifest else folder.stem),
        labels=labels or (manifest.slots if manifest else ()),
        described=found.described,
        problems=found.problems,
        instruction=instruction,
        on_problem=on_problem,
    )
    return _with_old_names(dataset, manifest) if manifest else dataset


def recognised(folder: Path) -> Layout:
    """The layout a folder or zip lies in.

    Raises:
        DatasetError: none that we know.
    """
    if folder.is_file():
        if folder.suffix.lower() == ".zip":
            return fal.LAYOUT
        raise DatasetError(f"{folder.name} is neither a folder nor a zip archive.")
    found = next((module.LAYOUT for module in _RECOGNISED if module.LAYOUT.here(folder)), None)
    if found is None:
        raise DatasetError(
            f"{folder} lies in none of the layouts known here ({', '.join(LAYOUTS)}). Use Load Paired Dataset with its folders."
        )
    return found


def _with_old_names(dataset: PairedDataset, manifest: Manifest) -> PairedDataset:
    items = {match_key(item.id): item for item in manifest.items}
    pairs = tuple(
        replace(pair, stem=items[key].stem, facts=items[key].facts) if (key := match_key(pair.stem)) in items else pair
        for pair in dataset.pairs
    )
    return replace(dataset, pairs=pairs, trigger_word=manifest.trigger_word)
