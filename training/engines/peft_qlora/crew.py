"""Several cards for one run: each works on its share of a step's batches, gradients are added up, the first one writes.

The worker is the first; it starts the others by calling this file with the job's folder, unless `accelerate launch` or torchrun has started them
already. A run on n cards with one batch each equals a run on one card with n batches per step.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...job import Job

PATIENCE = timedelta(hours=6)  # the others wait while the first encodes, samples and writes
LEAVE_S = 20.0
NAME = "comfyui_flenwheel"  # the pack's name outside ComfyUI


class Crew:
    """This process among those of the run. Alone where `world` is 1: then nothing here does anything."""

    def __init__(self, rank: int = 0, world: int = 1, others: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self.rank, self.world, self.others = rank, world, others

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def join(self, place: torch.device) -> None:
        """Meet the others."""
        if self.world > 1:
            import torch.distributed as together

            together.init_process_group("nccl" if place.type == "cuda" else "gloo", rank=self.rank, world_size=self.world, timeout=PATIENCE)

    def leave(self) -> None:
        if self.world > 1:
            import torch.distributed as together

            if together.is_initialized():
                together.destroy_process_group()

    def agreed(self, wanted: bool, place: torch.device) -> bool:
        """What the first wants, told to all; also a place to meet.

        Raises:
            TrainingFailed: another process has ended.
        """
        if self.world == 1:
            return wanted
        if any(other.poll() is not None for other in self.others):
            from ...errors import TrainingFailed

            raise TrainingFailed(
                "unknown", "The process of another card has ended.", "Read log.txt in the job's folder; gpus = 1 does without."
            )
        import torch
        import torch.distributed as together

        told = torch.tensor([int(wanted)], device=place)
        together.broadcast(told, 0)
        return bool(told.item())

    def add_up(self, parameters: Sequence[Any], loss: float) -> float:
        """Sum the gradients of all into each one's parameters; the answer is the sum of the losses."""
        if self.world == 1:
            return loss
        import torch
        import torch.distributed as together

        for parameter in parameters:
            if parameter.grad is not None:  # layers that nobody uses have none, in every process
                together.all_reduce(parameter.grad)
        total = torch.tensor([loss], dtype=torch.float64, device=parameters[0].device)
        together.all_reduce(total)
        return float(total.item())


def launched() -> tuple[int, int]:
    """Which of how many this process is where a launcher, such as `accelerate launch`, has started several: (0, 1) where none has."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def crew(job: Job, count: int) -> Iterator[Crew]:
    """The first of `count` processes; the others are started here and end with it.

    Raises:
        TrainingFailed: a launcher has started another number of them.
    """
    if (world := launched()[1]) > 1:
        if world != count:
            from ...errors import TrainingFailed

            raise TrainingFailed("unknown", f"{world} processes were launched, and gpus is {count}.", "Make both the same number.")
        yield Crew(0, world)
        return
    if count == 1:
        yield Crew()
        return
    import psutil

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    others = [subprocess.Popen([sys.executable, __file__, str(job.folder), str(rank), str(count)]) for rank in range(1, count)]
    for other in others:
        job.append("launched", pid=other.pid, created=psutil.Process(other.pid).create_time())
    try:
        yield Crew(0, count, others)
    finally:
        for other in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(LEAVE_S if sys.exc_info()[0] is None else 0.5)
            other.kill()
            other.wait()


def join(folder: Path, rank: int, world: int) -> None:
    """What another than the first does: the same run, without a word."""
    import importlib

    if NAME not in sys.modules:
        runpy.run_path(str(Path(__file__).resolve().parents[2] / "__main__.py"))["name_the_pack"]()
    engine: Any = importlib.import_module(f"{NAME}.training.engines.peft_qlora")
    loop: Any = importlib.import_module(f"{NAME}.training.engines.peft_qlora.loop")
    job: Any = importlib.import_module(f"{NAME}.training.job")

    class Silent(job.Job):
        def append(self, *_: Any, **__: Any) -> None:
            pass

    mine = Silent(folder)
    member = importlib.import_module(f"{NAME}.training.engines.peft_qlora.crew").Crew(rank, world)
    with contextlib.suppress(importlib.import_module(f"{NAME}.training.errors").Stopped):
        loop.train(mine, engine.options_of(mine), member)


if __name__ == "__main__":
    join(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
