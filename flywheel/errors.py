"""What can go wrong, one class per decision a caller makes.

FlywheelError                the user can act on it; ComfyUI shows the text as it is
├── ProjectError             fix the name, the token or the folder
├── ImageError               one file cannot be used; the others can
├── StorageError             the disk refused: full, read-only, no permission
├── DatasetError             fix the files; shows every problem
├── PromptError              fix the template
├── LoraError                choose another LoRA file
├── EditorError              the editor cannot make this image
│   ├── EditorUnavailable    another editor might
│   ├── OutOfRoom            not beside other work; alone perhaps
│   └── Abandoned            nobody waits for this image any more
├── IdentityError            faces cannot be measured
│   └── ScoreMismatch        two scores that must not be compared
└── ReviewPending            a person still has to decide
"""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 10  # problems printed in one message; all of them stay in `problems`


class FlywheelError(Exception):
    """A problem the user can act on. The text says what is wrong, which thing, and what to do."""


class ProblemsError(FlywheelError):
    """Several problems at once, so that nobody has to fix them one run at a time."""

    def __init__(self, summary: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        lines = [summary, *(f"  - {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  … and {len(self.problems) - SHOWN} more")
        super().__init__("\n".join(lines))


class ProjectError(ProblemsError):
    """The project's name, token or folder does not work."""


class ImageError(FlywheelError):
    """This file cannot be used as an image."""


class StorageError(FlywheelError):
    """The disk refused. What was finished before is kept."""


class DatasetError(ProblemsError):
    """The files of a dataset do not fit together."""


class PromptError(ProblemsError):
    """A prompt template cannot be expanded."""


class LoraError(ProblemsError):
    """A LoRA file is damaged, is none, or fits another model."""


class EditorError(FlywheelError):
    """The editor could not make an image."""


class EditorUnavailable(EditorError):
    """This editor cannot work here; another one might."""


class OutOfRoom(EditorError):
    """Memory did not suffice beside what else is being made. Ask again when nothing else is."""


class Abandoned(EditorError):
    """Nobody waits for this image any more."""


class IdentityError(ProblemsError):
    """Faces cannot be measured with these references or this engine."""


class ScoreMismatch(IdentityError):
    """Scores of different engines or reference sets are never compared."""


class ReviewPending(FlywheelError):
    """A person still has to decide."""
