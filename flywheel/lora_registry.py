"""LoRAs by name instead of by file: the published ones we know and those this pack has trained. Which file, which words, how strong, for which prompts.

Finds files among names that a caller lists; loads and downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from . import lora, qwen
from .errors import LoraError

TRAINED = "flenwheel"  # folder below the LoRA folder that trainings write to: flenwheel/<project>/<file>
MARK = "flenwheel."  # before our keys in a trained file's metadata


@dataclass(frozen=True, slots=True)
class Entry:
    """A LoRA one can choose. `name` below the LoRA folder, empty while it is missing; `when` and `weight` are the usual ones."""

    choice: str
    name: str
    row: qwen.KnownLora | None

    @property
    def weight(self) -> float:
        return self.row.weight if self.row else 1.0

    @property
    def when(self) -> str:
        return self.row.when if self.row else lora.ALWAYS


def entries(names: Sequence[str]) -> list[Entry]:
    """Everything there is to choose: what was trained here first, then what is published. `names`: files below the LoRA folder."""
    trained = [Entry(_trained_choice(name), name, None) for name in names if PurePath(name).parts[0] == TRAINED]
    published = [Entry(f"{row.title} · {row.model}", _file_of(row, names), row) for row in qwen.known_loras() if row.file]
    return trained + published


def _trained_choice(name: str) -> str:
    _, *folders, file = PurePath(name).parts
    return f"{'/'.join(folders)} · {PurePath(file).stem}"


def _file_of(row: qwen.KnownLora, names: Sequence[str]) -> str:
    """The file as it is published, else one that is known by its name as the same LoRA."""
    files = {name: PurePath(name) for name in names}
    exact = next((name for name, file in files.items() if file.name == row.file), "")
    return exact or next((name for name, file in files.items() if qwen.known(file.stem) is row), "")


def find(choice: str, names: Sequence[str], folder: Path) -> Entry:
    """The chosen entry with its file.

    Raises:
        LoraError: it is not on this disk; says what to download, how large it is, from where and into which folder (`folder`).
    """
    entry = next((entry for entry in entries(names) if entry.choice == choice), None)
    if entry is None:
        raise LoraError(f"There is no trained LoRA {choice!r} in {folder / TRAINED} any more. Choose another, or put the file back.")
    if entry.row and not entry.name:
        raise LoraError(
            f"{entry.row.title} is not on this computer. Download {entry.row.file} ({entry.row.size}) from {entry.row.address} into {folder},"
            " press R in ComfyUI and queue again. FLENwheel never downloads a model by itself."
        )
    return entry


def trigger_of(entry: Entry, file: lora.LoraFile) -> str:
    """Words that wake it: published ones, those its trainer noted, or the token of a character trained here."""
    if entry.row:
        return entry.row.trigger
    facts = facts_of(file)
    return file.trigger or (facts.get("instance_token", "") if facts.get("kind") == "character" else "")


def facts_of(file: lora.LoraFile) -> Mapping[str, str]:
    """What our training wrote into the file: project, kind, base_model, rank, steps, instance_token, …"""
    return {name.removeprefix(MARK): text for name, text in file.metadata.items() if name.startswith(MARK)}


def described(entry: Entry, file: lora.LoraFile) -> str:
    if entry.row:
        return entry.row.described()
    facts = facts_of(file)
    if not facts:
        return "Nothing is noted in the file about how it was trained."
    about = ", ".join(f"{name.replace('_', ' ')} {facts[name]}" for name in ("base_model", "steps", "instance_token") if facts.get(name))
    return f"Trained here for project {facts.get('project', '?')}, {facts.get('kind', 'unknown')} LoRA: {about}."
