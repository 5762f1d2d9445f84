"""Why a trainer ended: its last lines, and the first cause that they match, in words and with one thing to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import TrainingFailed

SHOWN = 8  # lines told


@dataclass(frozen=True, slots=True)
class Cause:
    pattern: re.Pattern[str]
    words: str
    advice: str


CAUSES: dict[str, Cause] = {  # the first that matches the log tells
    "memory": Cause(
        re.compile(
            r"OutOfMemoryError|CUDA out of memory|Insufficient Memory|ErrorOutOfMemory|CUDNN_STATUS_(?:ALLOC|NOT_SUPPORTED|EXECUTION)|DefaultCPUAllocator: can't allocate|MemoryError"
        ),
        "The memory was not enough.",
        "Choose the next smaller memory profile in the settings, close other programs that use the graphics card, and train again.",
    ),
    "disk": Cause(
        re.compile(r"No space left on device|Errno 28|disk quota exceeded", re.IGNORECASE),
        "The disk is full.",
        "Free some space and queue again; it goes on from the last checkpoint.",
    ),
    "nan": Cause(
        re.compile(r"(?:avr_)?loss[=:]\s*nan|NaN detected|nan loss", re.IGNORECASE),
        "The loss is no number any more.",
        "Lower the learning rate, for example to half, and train again.",
    ),
    "version": Cause(
        re.compile(
            r"unrecognized arguments|unexpected keyword argument|No module named|cannot import name|check_min_version|requires a source install|AttributeError: module"
        ),
        "The engine and what it stands on do not fit together, or it is too old.",
        "Update the engine and install its requirements again in its own environment.",
    ),
    "weights": Cause(
        re.compile(
            r"size mismatch for|Missing key\(s\) in state_dict|Unexpected key\(s\)|SafetensorError|HeaderTooLarge|invalid load key|gated repo|401 Client Error"
        ),
        "A model file does not fit this trainer, or is damaged.",
        "Check base_model and the files beside it: kind, precision and completeness.",
    ),
    "missing": Cause(
        re.compile(
            r"FileNotFoundError|No such file or directory|Entry Not Found|couldn't connect to|OfflineModeIsEnabled|LocalEntryNotFoundError"
        ),
        "A file that the trainer needs is not there.",
        "The log names it: put it there, or let the engine download it once.",
    ),
    "data": Cause(
        re.compile(
            r"No data found|no image|No training items found|Could not find matching control|Missing control images|UnidentifiedImageError|extra keys not allowed|MultipleInvalid",
            re.IGNORECASE,
        ),
        "The trainer could not use the training set.",
        "Export the training set again; if it stays, read the log.",
    ),
}
KILLED = Cause(
    re.compile(r"(?!)"),
    "The trainer was killed, most often because the main memory (RAM) was full.",
    "Close other programs, or choose the next smaller memory profile, and queue again.",
)


def failure(returncode: int, tail: Iterable[str]) -> TrainingFailed:
    """Why a trainer ended, from its last lines and its exit code."""
    lines = list(tail)
    telling = last_words(lines)
    for code, cause in CAUSES.items():
        if any(cause.pattern.search(line) for line in reversed(lines)):
            return TrainingFailed(code, cause.words, cause.advice, telling)
    if returncode in (-9, 137):
        return TrainingFailed("killed", KILLED.words, KILLED.advice, telling)
    return TrainingFailed(
        "unknown", f"The trainer ended with exit code {returncode}.", "Its last lines follow; log.txt has the rest.", telling
    )


def last_words(tail: Iterable[str]) -> tuple[str, ...]:
    """The last lines that mean something: no bars, no frames of a traceback."""
    meant = [
        line.strip() for line in tail if line.strip() and not re.search(r"^\s*(?:File \"|\^+|~|Traceback|warnings\.warn)|\d+%\|", line)
    ]
    return tuple(line[:300] for line in meant[-SHOWN:])
