"""What can go wrong with training, one class per decision a caller makes.

FlywheelError
└── TrainingError
    ├── SpecError              change the settings; shows every problem
    ├── PreflightError         mend the data, the engine or the disk; shows every problem
    ├── UnsupportedTraining    choose another engine; names those that can
    ├── EngineNotInstalled     install it, or give it the files it lacks
    ├── JobError               the job's folder was damaged or changed by hand
    └── TrainingFailed         the run ended without a usable LoRA: cause, words, advice
"""

from __future__ import annotations

from ..flywheel.errors import FlywheelError, ProblemsError


class TrainingError(FlywheelError):
    """Training cannot begin or did not succeed."""


class SpecError(TrainingError, ProblemsError):
    """The settings do not describe a training."""


class PreflightError(TrainingError, ProblemsError):
    """Something is missing that the run would stumble over later."""


class UnsupportedTraining(TrainingError, ProblemsError):
    """This engine cannot train that; the text names the engines that can."""


class EngineNotInstalled(TrainingError, ProblemsError):
    """The engine, its environment or a file it needs is not here."""


class JobError(TrainingError):
    """The folder of a job cannot be read."""


class TrainingFailed(TrainingError):
    """The run ended without a usable LoRA.

    `code` is one word for the cause (memory, nan, weights, data, version, disk, garbage, killed, unknown), `advice` the one thing to do,
    `tail` the last lines of the log that mean something.
    """

    def __init__(self, code: str, cause: str, advice: str, tail: tuple[str, ...] = ()) -> None:
        self.code, self.cause, self.advice, self.tail = code, cause, advice, tail
        super().__init__("\n".join([f"{cause} {advice}".strip(), *(f"  | {line}" for line in tail)]))


class Stopped(Exception):
    """Someone asked the run to stop; it did, at a step boundary."""
