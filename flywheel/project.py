"""A project: one character and its folder. The only place that knows folder names.

<root>/project.json                    name, instance token, class noun, medium
<root>/flenwheel.db                    verdicts, scores, face embeddings
<root>/data/source/v1/                 photographs, metadata.json
<root>/data/enriched/v1/               candidates, then good/ corrections/ rejected/; enrichment_metadata.json
<root>/data/synthetic/v1/              the same for synthetic images; filtered/ holds what passed the identity check and waits for a verdict
<root>/data/card/v1/                   the same for the images of model cards
<root>/data/{pristine,corrections,qwen_training,training}/v1/
<root>/models/flux_lora/
<root>/cache/                          thumbnails; delete at will
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from .errors import ProjectError
from .images import write_json
from .instructions import is_hand_made

StageName = Literal["source", "enriched", "synthetic", "pristine", "corrections", "qwen_training", "training", "card"]
STAGES: tuple[StageName, ...] = get_args(StageName)
Medium = Literal["photographs", "drawn"]  # what shows the character; drawn: painted, stylised or modelled likewise
MEDIA: tuple[Medium, ...] = get_args(Medium)
GOOD, CORRECTIONS, REJECTED, TRIES, FILTERED = "good", "corrections", "rejected", "tries", "filtered"
FOLDERS = ("", FILTERED, GOOD, CORRECTIONS, REJECTED, TRIES)  # where a candidate may lie in its stage; "": nobody has decided yet

SCHEMA = 1
TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9_]{2,31}")
FOLDER = re.compile(r"[^\W_][\w.-]{0,63}")
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})  # Windows devices


@dataclass(frozen=True, slots=True)
class Stage:
    """One folder of one lap, such as data/enriched/v1."""

    project: Project
    name: StageName

    @property
    def folder(self) -> Path:
        return self.project.root / "data" / self.name / self.project.version

    @property
    def lineage(self) -> Path:
        """One JSON per generated image: how it was made. Stays here when the image moves."""
        return self.folder / "lineage"

    @property
    def metadata(self) -> Path:
        return self.folder / (
            "metadata.json" if self.name == "source" else f"{'enrichment' if self.name == 'enriched' else self.name}_metadata.json"
        )


@dataclass(frozen=True, slots=True)
class Project:
    """A character's folder, with the words that name the character in captions.

    `lap` counts the turns of the wheel: its folders are called v1, v2, … `medium`: what somebody said; None in projects from before it was asked.
    """

    root: Path
    name: str
    instance_token: str
    class_noun: str
    lap: int = 1
    medium: Medium | None = None

    @property
    def version(self) -> str:
        return f"v{self.lap}"

    @property
    def folder_name(self) -> str:
        return self.root.name

    @property
    def database(self) -> Path:
        return self.root / "flenwheel.db"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def stage(self, name: StageName) -> Stage:
        return Stage(self, name)

    def relative(self, path: Path) -> str:
        """Path inside the project, with forward slashes: what metadata files hold."""
        return path.relative_to(self.root).as_posix()

    def path(self, relative: str) -> Path:
        """The file a metadata entry means.

        Raises:
            ProjectError: the entry leads out of the project.
        """
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ProjectError(f"{relative!r} leads out of the project {self.folder_name}. Correct the metadata file that says so.")
        return path


def open_project(home: Path, name: str, *, instance_token: str, class_noun: str, medium: Medium | None = None, lap: int = 1) -> Project:
    """Create the project `name` below `home`, or open it again.

    The token, class noun and medium may change between laps; project.json then holds the new ones. Without `medium` it is what was said before.

    Raises:
        ProjectError: name, token or noun do not work, nobody has ever said the medium, or the folder belongs to another character.
    """
    problems = [*_name_problems(name), *_token_problems(instance_token, class_noun)]
    if lap < 1:
        problems.append(f"the version is {lap}; laps are counted from 1")
    folder = folder_for(name)
    root = home / folder
    medium = medium or said_medium(home, name)
    problems += _medium_problems(medium, class_noun)
    if problems:
        raise ProjectError("This project cannot be opened:", problems)
    twin = next((other for other in _folders(home) if other.name != folder and other.name.casefold() == folder.casefold()), None)
    if twin is not None:
        raise ProjectError(f"{name!r} would share its folder with {twin.name!r} on Windows and macOS. Choose another name.")
    described = _read(root)
    if described and described["name"] != name.strip():
        raise ProjectError(f"The folder {folder} already belongs to {described['name']!r}. Choose a name that is written differently.")
    project = Project(root, name.strip(), instance_token, class_noun.strip(), lap, medium)
    wanted = {"schema": SCHEMA, "name": project.name, "instance_token": instance_token, "class_noun": project.class_noun, "medium": medium}
    if any(described.get(field) != value for field, value in wanted.items()):
        created = described.get("created", datetime.now(timezone.utc).isoformat(timespec="seconds"))
        write_json(root / "project.json", {**wanted, "created": created})
    return project


def load_project(root: Path, lap: int = 1) -> Project:
    """Open a project that exists, for example from its folder name in an address.

    Raises:
        ProjectError: there is none.
    """
    described = _read(root)
    if not described:
        raise ProjectError(f"There is no project in {root.name!r}.")
    return Project(
        root, described["name"], described["instance_token"], described["class_noun"], lap, medium_named(described.get("medium"))
    )


def said_medium(home: Path, name: str) -> Medium | None:
    """What the project of this character says of its pictures; None where it, or such a project, is not there.

    Raises:
        ProjectError: its project.json is damaged.
    """
    folder = folder_for(name)
    return medium_named(_read(home / folder).get("medium")) if is_folder_name(folder) else None


def medium_named(said: str | None) -> Medium | None:
    """The medium that is meant; None for anything else."""
    return next((medium for medium in MEDIA if medium == said), None)


def is_folder_name(text: str) -> bool:
    """Whether a folder name from outside may be used as it is."""
    return bool(FOLDER.fullmatch(text)) and ".." not in text and text.casefold().split(".")[0] not in RESERVED


def folder_for(name: str) -> str:
    """The folder of a character: its name with everything but letters, digits, dot and hyphen as underscores."""
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name.strip())).strip("_.-")


def laps(root: Path, stage: StageName) -> list[int]:
    """The versions that exist of a stage, ascending."""
    folder = root / "data" / stage
    found = (re.fullmatch(r"v([1-9]\d{0,3})", entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def project_roots(home: Path) -> list[Path]:
    """The folder of every project below `home`, by name; what is in it may still be unreadable."""
    return [root for root in _folders(home) if (root / "project.json").is_file()]


def _folders(home: Path) -> list[Path]:
    return sorted(entry for entry in home.iterdir() if entry.is_dir()) if home.is_dir() else []


def _read(root: Path) -> dict[str, str]:
    try:
        described = json.loads((root / "project.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ProjectError(
            f"{root.name}/project.json is not readable JSON ({error}). Mend it or delete it; the images are not touched."
        ) from error
    missing = [field for field in ("name", "instance_token", "class_noun") if not isinstance(described.get(field), str)]
    if missing:
        raise ProjectError(f"{root.name}/project.json lacks {', '.join(missing)}. Add it or delete the file; the images are not touched.")
    return described


def _name_problems(name: str) -> list[str]:
    folder = folder_for(name)
    if not folder:
        return ["the character has no name: type one, with at least one letter or digit"]
    if not is_folder_name(folder):
        return [
            f"{name!r} cannot be a folder name ({folder!r}): use up to 64 letters, digits, spaces, '-' and '_', and no device name such as CON"
        ]
    return []


def _token_problems(token: str, noun: str) -> list[str]:
    problems: list[str] = []
    if not TOKEN.fullmatch(token):
        problems.append(
            f"the instance token {token!r} must be one word of 3 to 32 letters, digits and '_', starting with a letter, such as ohwx_char"
        )
    elif token.casefold() in common_words():
        problems.append(
            f"the instance token {token!r} is a normal word: the model already knows it, so training would fight its meaning."
            " Use a rare one such as ohwx_char"
        )
    if not noun.strip():
        problems.append("the class noun is empty: say what the character is, for example person, woman, man, dog")
    elif noun.strip().casefold() == token.casefold():
        problems.append(f"the class noun and the instance token are both {token!r}: the noun is the ordinary word, the token a rare one")
    return problems


def _medium_problems(medium: Medium | None, noun: str) -> list[str]:
    if medium is None:
        return [
            "nobody has said yet whether the pictures are photographs or drawn: choose it under pictures_are. Only photographed faces are scored"
        ]
    if medium == "photographs" and is_hand_made(noun):
        return [
            f"the pictures are said to be photographs, and the class noun {noun.strip()!r} means a drawn character: change one of the two"
        ]
    return []


@cache
def common_words() -> frozenset[str]:
    """Lower-case English words and first names that an image model already knows."""
    text = (Path(__file__).parent / "data" / "common_words.txt").read_text(encoding="utf-8")
    return frozenset(text.split())
