"""The state of a run on disk: LoRA, its average, the optimizer. Read back bit for bit; a damaged one is passed over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....flywheel.images import write_whole
from ...job import Job
from .network import Network

KEPT = 2
_FLAT = "optimizer"


def save(job: Job, step: int, network: Network, optimizer: torch.optim.Optimizer) -> Path:
    """Write the state after `step` steps; older ones but the last are removed.

    Raises:
        StorageError: the disk refused; the older ones are still there.
    """
    from safetensors.torch import save as serialised

    path = job.checkpoints / f"step-{step:08}.safetensors"
    if path.is_file():
        return path
    tensors, rest = network.state(), {}
    _flatten(_FLAT, optimizer.state_dict()["state"], tensors, rest)
    write_whole(path, serialised(tensors, {"job": job.id, "step": str(step), "rest": json.dumps(rest)}))
    job.append("checkpoint", step=step, file=path.relative_to(job.folder).as_posix())
    for old in sorted(job.checkpoints.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def resume(job: Job, network: Network, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest checkpoint that is whole; the answer is its step, 0 where there is none."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(job.checkpoints.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="pt") as file:
                told = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            if told["job"] != job.id:
                job.append("note", text=f"{path.name} is of another run and was passed over")
                continue
            state = _unflattened(tensors, json.loads(told["rest"]))
            network.restore(tensors)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            return int(told["step"])
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
            job.append("note", text=f"{path.name} is damaged ({str(error)[:120]}) and was passed over")
    return 0


def _flatten(prefix: str, value: Any, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().to("cpu", copy=True).contiguous()  # bitsandbytes shares its tables among layers, a file must not
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _flatten(f"{prefix}/{name}", one, tensors, rest)
    else:
        rest[prefix] = value


def _unflattened(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[int, Any]:
    whole: dict[str, Any] = {}
    for name, value in {**tensors, **rest}.items():
        first, *path = name.split("/")
        if first != _FLAT:
            continue
        place = whole
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = value.clone() if isinstance(value, torch.Tensor) else value
    return {int(number): state for number, state in whole.items()}
