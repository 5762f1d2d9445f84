"""Qwen-Image-Edit from a Hugging Face folder through diffusers and PEFT: all parts resident on a 24 GB card, LoRAs stacked and never fused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import lora, qwen
from ..errors import EditorError, EditorUnavailable
from ..images import value_key
from . import ControlRef, Edit, EditRequest
from .qwen.models import ModelFolder, open_folder

if TYPE_CHECKING:
    from .qwen import memory

VERSION = "1"  # raise it when the same request gives other pixels
LIBRARIES = ("torch", "safetensors", "diffusers", "transformers", "peft", "accelerate")

Precision = Literal["auto", "as stored", "fp8", "int8", "w8a8", "nf4"]
Memory = Literal["auto", "resident", "in turns", "nf4", "streamed"]


@dataclass(frozen=True, slots=True)
class QwenOptions:
    """What a person sets. A folder and a few numbers; the rest is decided by the model and the card."""

    model: str = field(
        default="",
        metadata={
            "help": "The folder of a Qwen-Image-Edit model (2509, 2511, …) as downloaded from Hugging Face: a full path, or its name below ComfyUI's models/diffusers."
        },
    )
    transformer_file: str = field(
        default="",
        metadata={
            "help": "Optional: a single .safetensors transformer as ComfyUI uses it (bf16 or fp8, scaled or not). It replaces the folder's transformer weights."
        },
    )
    steps: int = field(
        default=0,
        metadata={
            "help": "Denoising steps. 0 takes what suits the model (20 or 40), or 4 or 8 when a Lightning LoRA is in the stack.",
            "min": 0,
            "max": 100,
        },
    )
    guidance: float = field(
        default=0.0,
        metadata={
            "help": "How strictly the prompt is followed (true CFG). 0 takes what suits the model (4) and its LoRAs; 1 uses no negative prompt and is twice as fast.",
            "min": 0.0,
            "max": 20.0,
            "step": 0.1,
        },
    )
    schedule: Literal["auto", "standard", "lightning"] = field(
        default="auto",
        metadata={
            "help": "The noise schedule: lightning belongs to the 4- and 8-step Lightning LoRAs, standard to everything else. auto goes by the LoRAs' names."
        },
    )
    negative_prompt: str = field(
        default=" ",
        metadata={"help": "What the image should not be. A blank is what the model was made for; it is used when guidance is above 1."},
    )
    precision: Precision = field(
        default="auto",
        metadata={
            "help": "Bits of the transformer's weights. auto takes the best that stays on your card: as stored (40 GiB), fp8 (24 GB cards), nf4 (16 GB cards; needs bitsandbytes). w8a8 is int8 that also rounds what the layers see: faster products, a little less exact."
        },
    )
    memory: Memory = field(
        default="auto",
        metadata={
            "help": "How the parts share the card. auto plans it and steps down by itself when memory runs out; the others are where it starts."
        },
    )
    control_megapixels: float = field(
        default=0.0,
        metadata={
            "help": "Size at which control images are shown to the model. 0 is the size of the result, which keeps both aligned; 0.25 is up to twice as fast and less exact.",
            "min": 0.0,
            "max": 4.0,
            "step": 0.05,
        },
    )
    at_once: int = field(
        default=1,
        metadata={
            "help": "Images of the same size made at once when a whole batch is known. More than 1 helps small images only.",
            "min": 1,
            "max": 16,
        },
    )
    guided_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the steps that use guidance. Below 1 the last steps do without, which is faster and changes the image a little.",
            "min": 0.0,
            "max": 1.0,
            "step": 0.05,
        },
    )
    block_cache: float = field(
        default=0.0,
        metadata={
            "help": "Skip blocks whose input hardly changed since the last step (first-block cache). 0 is off and exact; 0.1 is faster and changes the image. No use at 4 steps.",
            "min": 0.0,
            "max": 1.0,
            "step": 0.01,
        },
    )
    compile: bool = field(
        default=False,
        metadata={
            "help": "Compile the transformer's blocks: minutes at the first image, then faster. Needs a compiler torch can use; off is always safe."
        },
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name):g} and must be at least {least:g}"
            for name, least in (("steps", 0), ("guidance", 0), ("control_megapixels", 0), ("at_once", 1), ("block_cache", 0))
            if not getattr(self, name) >= least
        ]
        if not 0 <= self.guided_share <= 1:
            problems.append(f"guided_share is {self.guided_share:g}; it is a share and must lie between 0 and 1")
        if problems:
            raise EditorError(f"The options of the Qwen editor do not work: {'; '.join(problems)}.")


@dataclass(frozen=True, slots=True)
class QwenDiffusers(QwenOptions):
    """Edits with Qwen-Image-Edit through diffusers: the folder as you downloaded it, quantised once if your card needs that, with LoRAs stacked on
    top. Text is encoded first and kept, weights that see only the timestep become small tables, so that all of it stays on a 24 GB card."""

    loras: lora.LoraStack = field(default=lora.LoraStack(), metadata={"help": "LoRAs to stack on the model."})
    pictures: tuple[ControlRef, ...] = field(default=(), metadata={"help": "Pictures 2 and 3, shown with every photo."})
    cache: Path | None = field(default=None, compare=False, metadata={"help": "Folder for embeddings, tables and quantised weights."})
    device: str = field(
        default="", compare=False, metadata={"help": "Where to compute, such as cuda:0 or cpu; empty takes the best there is."}
    )
    make_room: Callable[[], None] | None = field(
        default=None, compare=False, repr=False, metadata={"help": "Called before anything is loaded, to free the card of other models."}
    )

    @property
    def name(self) -> str:
        return "qwen_diffusers"

    @property
    def controls(self) -> range:
        return range(1, 4 - len(self.pictures))

    def folder(self) -> ModelFolder:
        """
        Raises:
            EditorUnavailable: parts of the model are missing; says which, how large they are and where they come from.
        """
        return open_folder(self.model, self.transformer_file)

    def fits(self, model: ModelFolder) -> list[lora.Fit]:
        """Every LoRA of the stack in this model.

        Raises:
            LoraError: one was made for another model.
        """
        layers = model.linears()
        return [lora.fit(lora.inspect(one.path), layers, model.root.name) for one in self.loras]

    def plan(self, model: ModelFolder, *, width: int, height: int, controls: int, held: float = 0.0) -> memory.Plan:
        """What will lie where for an image of this size with so many controls of the same size, once `make_room` has freed the `held` GiB. Loads
        nothing."""
        import torch

        from .qwen import memory
        from .qwen.jobs import passes, row_of
        from .qwen.latents import PATCH

        device = torch.device(self.device or _best_device(torch))
        steps, guidance = qwen.steps_and_cfg(row_of(model), self.loras, self.steps, self.guidance)
        tokens = (1 + controls) * (width // PATCH) * (height // PATCH)
        return memory.plan(
            model,
            device=device,
            dtype=_dtype(torch, device),
            precision=self.precision,
            rung=self.memory,
            tokens=tokens,
            pixels=width * height,
            steps=steps,
            batch=self.at_once * passes(guidance, tokens, device),
            held=held,
        )

    def fingerprint(self) -> dict[str, str]:
        return self._fingerprint(tuple(self.loras))

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        return self._fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def group(self, request: EditRequest) -> str:
        return lora.fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def _fingerprint(self, loras: tuple[lora.StackedLora, ...]) -> dict[str, str]:
        told = {
            "editor": self.name,
            "version": VERSION,
            "model": self._model_key(),
            "steps": str(self.steps),
            "guidance": f"{self.guidance:g}",
            "schedule": self.schedule,
            "negative_prompt": self.negative_prompt if self.guidance != 1 else "",
            "precision": "nf4" if self.memory == "nf4" else self.precision,
            "control_megapixels": f"{self.control_megapixels:g}",
            "guided_share": f"{self.guided_share:g}",
            "block_cache": f"{self.block_cache:g}",
            "loras": lora.fingerprint(loras),
        }
        if distilled := qwen.distilled_row(loras):  # known by its file's name, which is no part of its key
            told["distilled"] = f"{distilled.steps} steps, guidance {distilled.cfg}, shift {distilled.shift}"
        return told | {f"picture_{place}": picture.key for place, picture in enumerate(self.pictures, 2)}

    def _model_key(self) -> str:
        try:
            model = self.folder()
        except EditorUnavailable:
            return "missing"
        return value_key([model.key(part) for part in ("transformer", "text_encoder", "vae")])

    @contextmanager
    def session(self) -> Iterator[Edit]:
        """Yields an engine: call it with one request, or give it a whole batch through `prepare` or `many`."""
        refuse_missing_libraries()
        model = self.folder()
        self.fits(model)
        import torch

        from .qwen.engine import Engine
        from .qwen.jobs import Settings

        if self.make_room:
            self.make_room()
        device = torch.device(self.device or _best_device(torch))
        settings = Settings(
            steps=self.steps,
            guidance=self.guidance,
            guided_share=self.guided_share,
            schedule=self.schedule,
            negative_prompt=self.negative_prompt,
            control_megapixels=self.control_megapixels,
            at_once=self.at_once,
            precision=self.precision,
            memory=self.memory,
            device=device,
            dtype=_dtype(torch, device),
            block_cache=self.block_cache,
            compile=self.compile,
            cache=self.cache,
            pictures=self.pictures,
            name=self.name,
        )
        with Engine(model, self.loras, settings) as engine:
            yield engine


def refuse_missing_libraries() -> None:
    """
    Raises:
        EditorUnavailable: libraries of the extra `diffusers` are not installed; names them and the command.
    """
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise EditorUnavailable(
            f"The diffusers editor needs {', '.join(missing)}, which ComfyUI's Python does not have. Install with"
            f" `python -m pip install {' '.join(missing)}` (nf4 also needs bitsandbytes), or use the Qwen Editor with ComfyUI's own models."
        )


def _dtype(torch: Any, device: Any) -> Any:
    """bf16 on cards. On the CPU fp32: it is as fast there, and exact."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _best_device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
