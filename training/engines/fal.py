"""fal.ai: edit LoRAs for Qwen-Image-Edit and characters for FLUX.2 [dev], trained there, for money. Prices as documented in 2026.

The zip lies at a public address of fal's until it expires, as fal's documentation says; nobody can guess it, but it is no secret. Source:
https://fal.ai/models/<endpoint>/llms.txt and fal's documentation of queue, storage and errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _remote

KEY = "FAL_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of fal's trainers; `per_step` in US dollars, at least `least_steps` are charged."""

    id: str
    per_step: float
    least_steps: int


QWEN: Mapping[str, Endpoint] = {  # by the generation that the base's name tells
    "2509": Endpoint("fal-ai/qwen-image-edit-2509-trainer", 0.004, 100),
    "": Endpoint("fal-ai/qwen-image-edit-trainer", 0.004, 100),
}
FLUX2 = Endpoint("fal-ai/flux-2-trainer", 0.0064, 0)


class Fal:
    """Sends a zip, waits in fal's queue, fetches the LoRA."""

    name: ClassVar[str] = "fal"
    uses_gpu: ClassVar[bool] = False
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset({("edit", "qwen_image_edit"), ("character", "flux2_dev")})
    most_controls: ClassVar[int] = 1  # its trainers take more, but how their number is told is not documented
    options: ClassVar[type] = _remote.RemoteOptions

    def check(self, job: Job) -> list[str]:
        spec = job.spec
        endpoint = _endpoint(spec)
        if endpoint is None:
            raise EngineNotInstalled(
                "fal.ai cannot train this yet:",
                [f"what it charges for {spec.base_model} is not documented: take 2509, or train on your own machine"],
            )
        price = _remote.steps_price(spec, endpoint.per_step, endpoint.least_steps)
        facts = _remote.agreed(
            job,
            _remote.RemoteOptions(**spec.options),  # type: ignore[arg-type]
            title=_Service.title,
            key=KEY,
            price=price,
            per=f"{endpoint.id}, {endpoint.per_step:g} USD per step; see fal.ai/models/{endpoint.id}",
        )
        return [*facts, "fal.ai is told steps and learning rate; rank, alpha, resolution, batch size and seed are its own"]

    def versions(self, job: Job) -> str:
        """fal.ai numbers its trainers by their names alone, and answers no version."""
        endpoint = _endpoint(job.spec)
        return f"fal.ai {endpoint.id}" if endpoint else ""

    def train(self, job: Job) -> Path:
        endpoint = _endpoint(job.spec)
        assert endpoint
        return _remote.train(job, _Service(job.spec, endpoint))


def _endpoint(spec: TrainingSpec) -> Endpoint | None:
    if spec.architecture == "flux2_dev":
        return FLUX2
    found = re.search(r"25\d\d", Path(spec.base_model).name)
    return QWEN.get(found[0] if found else "")


@dataclass(frozen=True, slots=True)
class _Service:
    spec: TrainingSpec
    endpoint: Endpoint
    title: ClassVar[str] = "fal.ai"

    def _wire(self, variable: str, usual: str) -> _remote.Wire:
        return _remote.Wire(self.title, os.environ.get(variable, "").strip() or usual, f"Key {_remote.secret(KEY)}")

    @property
    def _queue(self) -> _remote.Wire:
        return self._wire("FAL_QUEUE_URL", "https://queue.fal.run")

    def upload(self, archive: Path) -> str:
        wire = self._wire("FAL_REST_URL", "https://rest.fal.ai")
        told = wire.tell("POST", "storage/upload/initiate?storage_type=gcs", {"file_name": archive.name, "content_type": "application/zip"})
        wire.put(_remote.text_of(self.title, told, "upload_url"), archive, "application/zip")
        return _remote.text_of(self.title, told, "file_url")

    def submit(self, url: str) -> dict[str, Any]:
        body = {"image_data_url": url, "steps": self.spec.steps, "learning_rate": self.spec.learning_rate}
        told = self._queue.tell("POST", self.endpoint.id, body)
        return {"id": _remote.text_of(self.title, told, "request_id")} | {
            name: _remote.text_of(self.title, told, name) for name in ("status_url", "response_url", "cancel_url")
        }

    def standing(self, ticket: Mapping[str, Any]) -> _remote.Standing:
        try:
            told = self._queue.ask(f"{ticket['status_url']}?logs=1")
        except TrainingFailed as error:
            if error.code != "gone":
                raise
            return _remote.Standing("gone", error.cause)
        log = "\n".join(str(row.get("message", "")) for row in told.get("logs") or [] if isinstance(row, dict))
        if told.get("status") == "IN_QUEUE":
            before = told.get("queue_position")
            return _remote.Standing("waiting", f"in fal.ai's queue, {before} before us" if before else "in fal.ai's queue", log)
        if told.get("status") == "IN_PROGRESS":
            return _remote.Standing("running", "training at fal.ai", log)
        if told.get("status") != "COMPLETED":
            raise TrainingFailed(
                "garbage", f"fal.ai names a state that is not known here: {told.get('status')!r}.", "Look at fal.ai's dashboard."
            )
        if told.get("error"):
            return _remote.Standing("failed", str(told["error"]), log)
        try:
            return _remote.Standing("done", log=log, output=self._queue.ask(ticket["response_url"]))
        except TrainingFailed as error:
            return _remote.Standing("gone" if error.code == "gone" else "failed", error.cause, log)

    def cancel(self, ticket: Mapping[str, Any]) -> None:
        self._queue.tell("PUT", ticket["cancel_url"])

    def fetch(self, output: Mapping[str, Any], target: Path) -> None:
        self._queue.download(_remote.text_of(self.title, output.get("diffusers_lora_file"), "url"), target)
