"""A Qwen-Image-Edit model folder as Hugging Face lays it out: what must be in it, what it weighs, what names its content. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ... import qwen
from ...errors import EditorUnavailable
from ...images import value_key
from ...known_files import Memory, signature_of

GIB = 2**30
PARTS = ("transformer", "text_encoder", "vae")  # the parts with weights
PIPELINE = "QwenImageEditPlus"  # how the classes begin that show numbered pictures; the first Qwen-Image-Edit had other words for one
TIMESTEP_ZERO = "__index_timestep_zero__"  # a tensor by which ComfyUI's files tell that their controls are modulated at time zero
SAMPLE_BYTES = 256  # from the middle of each tensor
NEEDED = {
    "model_index.json": "which classes the parts have",
    "scheduler/scheduler_config.json": "the noise schedule",
    "tokenizer": "the words of the text encoder",
    "processor": "how pictures are shown to the text encoder",
    "text_encoder": "the text encoder",
    "transformer": "the transformer",
    "vae": "the image encoder and decoder",
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in which every part was found. `transformer_file`: a single file whose weights replace those of transformer/."""

    root: Path
    transformer_file: Path | None = None

    @property
    def pipeline_class(self) -> str:
        return str(read_json(self.root / "model_index.json").get("_class_name", ""))

    def config(self, part: str) -> dict[str, Any]:
        return read_json(self.root / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))

    def files(self, part: str) -> list[Path]:
        """The weight files of a part."""
        if part == "transformer" and self.transformer_file:
            return [self.transformer_file]
        return sorted((self.root / part).glob("*.safetensors"))

    def quantised(self, part: str) -> bool:
        """Whether a part is stored in fewer bits, in whichever way transformers knows."""
        return "quantization_config" in self.config(part)

    def key(self, part: str) -> str:
        """Names the content of a part: its configuration and what `weights_key` says of each weight file."""
        return value_key([self.config(part), [[path.name, weights_key(path)] for path in self.files(part)]])

    def tensors(self, part: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every stored tensor, from the headers alone."""
        return {
            name: (told["dtype"], tuple(told["shape"]))
            for path in self.files(part)
            for name, told in json.loads(header_bytes(path)).items()
            if name != "__metadata__"
        }

    def linears(self) -> dict[str, tuple[int, int] | None]:
        """Name to (out, in) features of every linear layer of the transformer: what a LoRA must fit."""
        return {
            name.removeprefix("model.diffusion_model.").removesuffix(".weight"): (shape[0], shape[1])
            for name, (_, shape) in self.tensors("transformer").items()
            if name.endswith(".weight") and len(shape) == 2
        }


def open_folder(text: str, transformer_file: str = "") -> ModelFolder:
    """Find every part of a model, before anything is loaded.

    Raises:
        EditorUnavailable: parts are missing or unreadable; names each, and where a model comes from.
    """
    root, single = Path(text.strip()).expanduser(), Path(transformer_file.strip()).expanduser() if transformer_file.strip() else None
    if not text.strip() or not root.is_dir():
        raise EditorUnavailable(f"There is no Qwen-Image-Edit model folder at {text.strip()!r}. {how_to_get()}")
    model = ModelFolder(root, single)
    problems = [f"{name} is missing: {what}" for name, what in NEEDED.items() if not (root / name).exists()]
    if not problems:
        problems = list(_unreadable(model))
    if problems:
        raise EditorUnavailable(f"The model folder {root.name} cannot be used: {'; '.join(problems)}. {how_to_get()}")
    return model


def _unreadable(model: ModelFolder) -> Iterator[str]:
    if model.transformer_file and model.transformer_file.suffix == ".gguf":
        yield f"{model.transformer_file.name} is a GGUF file, which the ComfyUI models editor loads; here give a .safetensors file or nothing"
        return
    for part in PARTS:
        files = model.files(part)
        if not files:
            yield f"{part}/ holds no .safetensors file"
        named = model.root / part
        for index in named.glob("*.index.json") if not (part == "transformer" and model.transformer_file) else ():
            for name in sorted(set(read_json(index)["weight_map"].values())):
                if not (named / name).is_file():
                    yield f"{part}/{name} is missing (an unfinished download?)"
        for path in files:
            if not path.is_file():
                yield f"{path.name} is not there"
                continue
            if trouble := damage(path):
                yield f"{part}: {path.name} {trouble}"
            elif path == model.transformer_file:
                yield from _of_another_model(model, path)
    if not model.pipeline_class.startswith(PIPELINE):
        yield f"its model_index.json says {model.pipeline_class or 'nothing'}, not a {PIPELINE} pipeline"


def _of_another_model(model: ModelFolder, file: Path) -> Iterator[str]:
    """What the weights would not tell: they fit, and every picture would be put at the wrong place."""
    at_zero = any(name.endswith(TIMESTEP_ZERO) for name in model.tensors("transformer"))
    if at_zero and not model.config("transformer").get("zero_cond_t"):
        names = [row.name for row in qwen.models().values() if row.folder and row.folder.zero_cond_t]
        yield f"{file.name} belongs to {' or '.join(names)}, and this folder is another model's; give that model's folder with it"


def how_to_get() -> str:
    """Where the folders come from that this editor takes, the recommended one first."""
    rows = [(row.name, row.folder) for row in qwen.models().values() if row.folder]
    places = "; ".join(f"{name}, {folder.size}: https://huggingface.co/{folder.repository}" for name, folder in rows)
    name, folder = rows[0]
    return (
        f"Such a folder (transformer 38 GiB, text encoder 15.5, VAE 0.25) is on Hugging Face: {places}. Download it yourself, for example with"
        f" `hf download {folder.repository} --local-dir <ComfyUI>/models/diffusers/{name}`, and give that folder here."
        " FLENwheel never downloads a model by itself."
    )


def damage(path: Path) -> str:
    """What is wrong with a .safetensors file, judged by its header and size; empty when nothing is."""
    try:
        header = json.loads(header_bytes(path))
        end = max((told["data_offsets"][1] for name, told in header.items() if name != "__metadata__"), default=0)
        wanted = 8 + len(header_bytes(path)) + end
        if path.stat().st_size < wanted:
            return f"is cut off: {path.stat().st_size:,} of {wanted:,} bytes; download it again"
        with safe_open(path, framework="numpy"):  # reads the header alone, and every word of it
            return ""
    except (ValueError, OSError, struct.error, AttributeError, KeyError, IndexError, TypeError, SafetensorError) as error:
        return f"is not a readable .safetensors file ({error}); download it again"


def weights_key(path: Path) -> str:
    """Names the content of a .safetensors file by its header and some numbers of every tensor: reading 40 GB would take minutes, and models made from
    one another differ in nothing but numbers."""
    signature, at = signature_of(path.stat()), (str(path.parent), path.name)
    return _keys.get(at, signature) or _keys.put(at, signature, _sampled(path))


def _sampled(path: Path) -> str:
    header = header_bytes(path)
    digest = hashlib.sha256(header)
    spans = sorted(told["data_offsets"] for name, told in json.loads(header).items() if name != "__metadata__")
    with path.open("rb") as file:
        for start, end in spans:
            file.seek(8 + len(header) + max(start, (start + end - SAMPLE_BYTES) // 2))
            digest.update(file.read(min(SAMPLE_BYTES, end - start)))
    return digest.hexdigest()


_keys: Memory[str] = Memory()


def header_bytes(path: Path) -> bytes:
    """The JSON header of a .safetensors file.

    Raises:
        ValueError: it has none.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length < 100_000_000:
            raise ValueError("it has no header")
        header = file.read(length)
    if len(header) < length:
        raise ValueError("its header is cut off")
    return header


def read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EditorUnavailable(f"{path.parent.name}/{path.name} is not readable ({error}). Download it again.") from error
    return read if isinstance(read, dict) else {}
