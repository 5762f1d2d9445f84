"""Replicate: characters for FLUX.1 with ostris/flux-dev-lora-trainer, trained there, for money by the second.

Never sends a Hugging Face token: with one, that trainer publishes the LoRA. Source: Replicate's HTTP API (files, models, trainings) and the
trainer's train.py, github.com/replicate/flux-fine-tuner.
"""

from __future__ import annotations

import os
import re
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...flywheel.images import storage_error
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _remote

KEY = "REPLICATE_API_TOKEN"
TRAINER = "ostris/flux-dev-lora-trainer"
PER_STEP = 0.002  # USD; it charges by the second: "less than two dollars" for a run of 1000 steps, said Replicate when it came out (2024)
MOST_STEPS = 6000
_DESTINATION = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ReplicateOptions(_remote.RemoteOptions):
    """What Replicate has to know beyond the settings."""

    destination: str = field(
        default="",
        metadata={"help": "Your model there that takes the result, as name/model. Make a private one at replicate.com/create first."},
    )


class Replicate:
    """Sends a zip, waits, fetches the LoRA out of the archive that comes back."""

    name: ClassVar[str] = "replicate"
    uses_gpu: ClassVar[bool] = False
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset({("character", "flux1")})
    most_controls: ClassVar[int] = 0
    options: ClassVar[type] = ReplicateOptions

    def check(self, job: Job) -> list[str]:
        spec, options, problems = job.spec, ReplicateOptions(**job.spec.options), list[str]()  # type: ignore[arg-type]
        if not _DESTINATION.fullmatch(options.destination):
            problems.append(
                f"destination is {options.destination!r}: make a private model at replicate.com/create and name it as yourname/modelname"
            )
        if spec.steps > MOST_STEPS:
            problems.append(f"steps is {spec.steps}; this trainer takes {MOST_STEPS} at most")
        per = f"{TRAINER}; charged by the second, so this is a rough figure: {PER_STEP:g} USD per step"
        try:
            facts = _remote.agreed(job, options, title=_Service.title, key=KEY, price=spec.steps * PER_STEP, per=per)
        except EngineNotInstalled as error:
            raise EngineNotInstalled("Replicate cannot train this yet:", [*error.problems, *problems]) from error
        if problems:
            raise EngineNotInstalled("Replicate cannot train this yet:", problems)
        return [*facts, "Replicate decides alpha (it is the rank), seed and gradient accumulation"]

    def versions(self, job: Job) -> str:
        """The version of the trainer that was asked to train; empty before it was."""
        version = _remote.ticket(job).get("version")
        return f"Replicate {TRAINER}:{version}" if version else ""

    def train(self, job: Job) -> Path:
        return _remote.train(job, _Service(job.spec))


@dataclass(frozen=True, slots=True)
class _Service:
    spec: TrainingSpec
    title: ClassVar[str] = "Replicate"

    @property
    def _wire(self) -> _remote.Wire:
        base = os.environ.get("REPLICATE_BASE_URL", "").strip() or "https://api.replicate.com"
        return _remote.Wire(self.title, base, f"Bearer {_remote.secret(KEY)}")

    def upload(self, archive: Path) -> str:
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="content"; filename="{archive.name}"\r\nContent-Type: application/zip\r\n\r\n'
        content = head.encode() + archive.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        try:
            told = self._wire.tell("POST", "v1/files", content=content, kind=f"multipart/form-data; boundary={edge}")
        except _remote.Unsure as error:
            raise TrainingFailed("remote", f"The upload to Replicate broke off ({error}).", "Queue again; nothing was begun.") from error
        return _remote.text_of(self.title, told.get("urls"), "get")

    def submit(self, url: str) -> dict[str, Any]:
        version = _remote.text_of(self.title, self._wire.ask(f"v1/models/{TRAINER}").get("latest_version"), "id")
        options = ReplicateOptions(**self.spec.options)  # type: ignore[arg-type]
        body = {
            "destination": options.destination,
            "input": {
                "input_images": url,
                "trigger_word": self.spec.instance_token,
                "autocaption": False,  # the captions are ours
                "steps": self.spec.steps,
                "learning_rate": self.spec.learning_rate,
                "batch_size": self.spec.batch_size,
                "resolution": str(self.spec.resolution),
                "lora_rank": self.spec.rank,
            },
        }
        told = self._wire.tell("POST", f"v1/models/{TRAINER}/versions/{version}/trainings", body)
        return {"id": _remote.text_of(self.title, told, "id"), "version": version}

    def standing(self, ticket: Mapping[str, Any]) -> _remote.Standing:
        try:
            told = self._wire.ask(f"v1/trainings/{ticket['id']}")
        except TrainingFailed as error:
            if error.code != "gone":
                raise
            return _remote.Standing("gone", error.cause)
        state, log = told.get("status"), str(told.get("logs") or "")
        if state in ("starting", "processing"):
            return _remote.Standing("waiting" if state == "starting" else "running", f"{state} at Replicate", log)
        if state in ("canceled", "aborted"):
            return _remote.Standing("cancelled", str(told.get("error") or ""), log)
        if state == "failed":
            return _remote.Standing("failed", str(told.get("error") or ""), log)
        if state != "succeeded":
            raise TrainingFailed(
                "garbage", f"Replicate names a state that is not known here: {state!r}.", "Look at replicate.com/trainings."
            )
        output = told.get("output")
        return _remote.Standing("done", log=log, output=output if isinstance(output, dict) else {})

    def cancel(self, ticket: Mapping[str, Any]) -> None:
        self._wire.tell("POST", f"v1/trainings/{ticket['id']}/cancel")

    def fetch(self, output: Mapping[str, Any], target: Path) -> None:
        archive = target.with_suffix(".tar")
        self._wire.download(_remote.text_of(self.title, output, "weights"), archive)
        try:
            with tarfile.open(archive) as opened:
                found = [
                    member
                    for member in opened
                    if member.isfile() and member.name.endswith(".safetensors") and member.size < _remote.MOST_BYTES
                ]
                source = opened.extractfile(found[0]) if len(found) == 1 else None
                if source is None:
                    raise TrainingFailed(
                        "garbage", f"The archive from Replicate holds {len(found)} LoRA files instead of one.", "Look at it there."
                    )
                target.write_bytes(source.read())
        except tarfile.TarError as error:
            raise TrainingFailed(
                "garbage", f"What Replicate sent is no archive ({error}).", "Queue again: only that is repeated."
            ) from error
        except OSError as error:
            raise storage_error(target, error) from error
        finally:
            archive.unlink(missing_ok=True)
