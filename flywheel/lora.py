"""LoRA files: what is in them, in whatever style their trainer named the layers, and whether they fit a model. Reads headers without torch.

A style is only a spelling. `inspect` takes the spelling off; `fit` finds each layer in a model or refuses the file, naming why; `parts` loads
the tensors under the model's own names. Applying them is the engine's business.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import EditorError, LoraError
from .images import content_key
from .instructions import Kind, parse

if TYPE_CHECKING:
    import torch

_HEADER_LIMIT = 100_000_000  # bytes: the format's own limit
_WRAPPERS = (  # what trainers and pipelines put before a module's name; the longer one first
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "pipe.dit.",
    "dit.",
    "lora_unet_",
    "lora_transformer_",
    "lora_diffusion_model_",
    "lycoris_",
)
_TEXT_ENCODER = re.compile(r"^(?:lora_te\d?_|text_encoders?[._]|te\d?[._]|clip_[lgh][._]|text_model[._])")
_PART = re.compile(
    r"^(?P<layer>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora_mid|lora\.down|lora\.up|alpha|dora_scale|lora_magnitude_vector|diff_b|diff"
    r"|lokr_w1_a|lokr_w1_b|lokr_w1|lokr_w2_a|lokr_w2_b|lokr_w2|lokr_t2|hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|hada_t1|hada_t2)"
    r"(?:\.(?P<adapter>(?!weight$)\w+))?(?:\.weight)?$"
)
_ROLES = {
    "lora_A": "down",
    "lora_down": "down",
    "lora.down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "lora.up": "up",
    "lora_mid": "mid",
    "lora_magnitude_vector": "dora_scale",
}
_FAMILIES: tuple[tuple[str, re.Pattern[str]], ...] = (  # by the flat names of layers; the first that occurs tells
    ("FLUX", re.compile(r"^(?:single_transformer_blocks|double_blocks|single_blocks)_\d+_")),
    ("Qwen-Image", re.compile(r"^transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_")),
    ("Stable Diffusion", re.compile(r"^(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")),
    ("Stable Diffusion 3", re.compile(r"^joint_blocks_\d+_|^transformer_blocks_\d+_(?:attn2_|ff_context_)")),
    ("Wan video", re.compile(r"^blocks_\d+_(?:cross_attn|self_attn|ffn)_")),
    ("Z-Image or Lumina", re.compile(r"^(?:layers|context_refiner|noise_refiner)_\d+_")),
    ("LTX video or PixArt", re.compile(r"^transformer_blocks_\d+_attn[12]_")),
    (
        "Qwen-Image",
        re.compile(r"^transformer_blocks_(?:2[4-9]|[3-5]\d)_attn_"),
    ),  # FLUX and SD3 end before block 24 when they use these names
)
_BASES: tuple[tuple[str, re.Pattern[str]], ...] = (  # by what a trainer wrote into the metadata
    ("Qwen-Image", re.compile(r"qwen[ _-]?image", re.IGNORECASE)),
    ("FLUX", re.compile(r"flux", re.IGNORECASE)),
    ("Stable Diffusion", re.compile(r"sd_?xl|sdxl|stable-diffusion-(?:v1|v2|xl)|sd_1|sd_v[12]", re.IGNORECASE)),
    ("Stable Diffusion 3", re.compile(r"sd3|stable-diffusion-3", re.IGNORECASE)),
    ("Wan video", re.compile(r"\bwan", re.IGNORECASE)),
    ("Z-Image or Lumina", re.compile(r"z[_-]?image|lumina", re.IGNORECASE)),
)


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One adapted module as the file calls it, without its trainer's prefix. `keys` and `shapes` by role: down, up, alpha, lokr_w1, …"""

    name: str
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def kind(self) -> str:
        """lora, lokr, loha or diff: how the change of the weight is stored."""
        roles = set(self.keys)
        if {"down", "up"} <= roles:
            return "lora"
        return "lokr" if any(role.startswith("lokr") for role in roles) else "loha" if any(role[:4] == "hada" for role in roles) else "diff"

    @property
    def rank(self) -> int | None:
        return self.shapes["down"][0] if self.kind == "lora" else None

    @property
    def change(self) -> tuple[int, int] | None:
        """(out, in) features of the module it was trained on; None where a file does not tell."""
        if self.kind == "lora" and len(self.shapes["down"]) == 2:
            return self.shapes["up"][0], self.shapes["down"][1]
        return None


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds. `prefix` is what stood before its layers' names, `strange` are keys that belong to no known kind of adapter."""

    path: Path
    layers: tuple[LoraLayer, ...]
    text_encoder: int  # layers for a text encoder; editors leave those alone
    strange: tuple[str, ...]
    prefix: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def family(self) -> str:
        """The kind of model it was made for: from its layers' names, else from what its trainer noted, else empty."""
        flat = [_flat(layer.name) for layer in self.layers]
        for family, pattern in _FAMILIES:
            if any(pattern.search(name) for name in flat):
                return family
        noted = " ".join(self.metadata.get(name, "") for name in ("modelspec.architecture", "ss_base_model_version", "base_model"))
        return next((family for family, pattern in _BASES if pattern.search(noted)), "")

    @property
    def trigger(self) -> str:
        """The trigger phrase its trainer noted, or empty."""
        return self.metadata.get("modelspec.trigger_phrase", "").strip()

    def described(self) -> str:
        """304 layers, rank 16, for Qwen-Image."""
        ranks = Counter(layer.rank or layer.kind for layer in self.layers)
        often = ranks.most_common(1)[0][0]
        rank = f"rank {often}" if isinstance(often, int) else {"lokr": "LoKr", "loha": "LoHa"}.get(often, "full weights")
        mixed = " and others" if len(ranks) > 1 else ""
        return f"{len(self.layers)} layers, {rank}{mixed}, for {self.family or 'an unknown model'}"


@dataclass(frozen=True, slots=True)
class Fit:
    """Where each layer of a file belongs in a model: target name to layer."""

    file: LoraFile
    placed: Mapping[str, LoraLayer]

    def __str__(self) -> str:
        skipped = f"; {self.file.text_encoder} text encoder layers are left out" if self.file.text_encoder else ""
        return f"{self.file.path.name}: {len(self.placed)} of {len(self.file.layers)} layers{skipped}"


def inspect(path: Path) -> LoraFile:
    """Read a LoRA's header: names, shapes and notes, no weights.

    Raises:
        LoraError: it is not there, not a safetensors file, cut off, or holds no LoRA.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise LoraError(f"{path.name} cannot be read ({error.strerror or error}). Choose another LoRA or put the file back.") from error
    return _inspect(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _inspect(path: Path, _modified: int, size: int) -> LoraFile:
    header = _header(path, size)
    metadata = {name: str(text) for name, text in (header.pop("__metadata__", None) or {}).items()}
    grouped: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    prefixes: Counter[str] = Counter()
    text_encoder: set[str] = set()
    for key in header:
        found = _PART.match(key)
        if not found:
            strange.append(key)
        elif _TEXT_ENCODER.match(found["layer"]):
            text_encoder.add(found["layer"])
        else:
            name = bare(found["layer"])
            prefixes[found["layer"][: len(found["layer"]) - len(name)]] += 1
            grouped.setdefault(name, {})[_ROLES.get(found["part"], found["part"])] = key
    if not grouped:
        what = "only layers of a text encoder" if text_encoder else f"tensors such as {next(iter(header), 'none at all')}"
        raise LoraError(f"{path.name} holds no LoRA: it has {what}. A LoRA has pairs such as lora_A and lora_B; choose another file.")
    layers = tuple(_layer(path, name, keys, header) for name, keys in grouped.items())
    return LoraFile(path, layers, len(text_encoder), tuple(strange), prefixes.most_common(1)[0][0], metadata)


def _layer(path: Path, name: str, keys: Mapping[str, str], header: Mapping[str, Any]) -> LoraLayer:
    if ("down" in keys) != ("up" in keys):
        missing = "lora_B (up)" if "down" in keys else "lora_A (down)"
        raise LoraError(f"{path.name} is not whole: {name} has no {missing}. Download or train it again.")
    shapes = {role: tuple(header[key]["shape"]) for role, key in keys.items()}
    if any(0 in shape for shape in shapes.values()):
        raise LoraError(f"{path.name} is not whole: {name} holds no numbers. Download or train it again.")
    return LoraLayer(name, keys, shapes)


def _header(path: Path, size: int) -> dict[str, Any]:
    """Names, types and places of the tensors. Source: https://github.com/huggingface/safetensors#format"""
    not_one = LoraError(
        f"{path.name} is not a safetensors file ({size:,} bytes). It may be a web page saved instead of the file, or an old .pt file: download"
        " the .safetensors again from where it came."
    )
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise not_one
        told = file.read(length)
    try:
        header = json.loads(told)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
        if size < whole:
            raise LoraError(f"{path.name} is cut off: {size:,} of {whole:,} bytes are here. Download or copy it again.")
        with safe_open(path, framework="numpy"):  # reads the header alone, and every word of it
            return header
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise not_one from error


def bare(layer: str) -> str:
    """A layer's name without what trainers put before it: `base_model.model.transformer_blocks.0.attn.to_q` and the like."""
    while prefix := next((prefix for prefix in _WRAPPERS if layer.startswith(prefix)), ""):
        layer = layer[len(prefix) :]
    return layer


def _flat(name: str) -> str:
    return name.replace(".", "_")


def fit(file: LoraFile, modules: Mapping[str, tuple[int, int] | None], model: str) -> Fit:
    """Find every layer of the file among a model's modules: name to (out, in) features, or None where a size cannot be compared.

    Module names may carry prefixes of their own; the answer uses them as they are given. `model` names the model in messages.

    Raises:
        LoraError: a layer is not in the model or has another size; the text says how many, and what the file seems to be made for.
    """
    targets = {_flat(bare(name)): name for name in modules}
    placed: dict[str, LoraLayer] = {}
    missing: list[str] = []
    sizes: list[str] = []
    for layer in file.layers:
        target = targets.get(_flat(layer.name))
        if target is None:
            missing.append(layer.name)
            continue
        wanted, change = modules[target], layer.change
        if wanted and change and wanted != change:
            sizes.append(f"{layer.name} is {change[1]} to {change[0]} wide, the model's {wanted[1]} to {wanted[0]}")
        placed[target] = layer
    if missing or sizes or file.strange:
        raise _refusal(file, model, len(placed) - len(sizes), missing, sizes)
    return Fit(file, placed)


def _refusal(file: LoraFile, model: str, fitting: int, missing: Sequence[str], sizes: Sequence[str]) -> LoraError:
    total = len(file.layers)
    foreign = bool(file.family) and len(missing) == total
    made_for = f": this is a {file.family} LoRA" if foreign else ""
    problems = [
        *(f"not in the model: {name}" for name in (missing[:2] if foreign else missing)),  # two show the style; the rest would be the same
        *sizes,
        *(f"not known as part of a LoRA: {key}" for key in file.strange),
    ]
    cause = (
        "it was made for a model of another size"
        if sizes and not missing
        else "it was made for another model or a variant of it"
        if missing
        else "it holds more than a LoRA"
    )
    return LoraError(
        f"{file.path.name} does not fit {model}: {fitting} of {total} layers{made_for or f'; {cause}'}."
        " Nothing of it was loaded. Take it out of the LoRA stack or choose the file for this model.",
        problems,
    )


def parts(fitted: Fit) -> Iterator[tuple[str, LoraLayer, dict[str, torch.Tensor]]]:
    """Target, layer and its tensors by role (down (rank, in), up (out, rank), alpha (), lokr_w1 …), as they are in the file."""
    with safe_open(str(fitted.file.path), framework="pt") as opened:
        for target, layer in fitted.placed.items():
            yield target, layer, {role: opened.get_tensor(key) for role, key in layer.keys.items()}


# --- stacks -----------------------------------------------------------------------------------------------------------------------------

ALWAYS = "every prompt"
KINDS: tuple[Kind, ...] = ("background", "lighting", "style", "camera", "other")
_TAGS = re.compile(r"^(?:@[\w-]+\s+)+")


@dataclass(frozen=True, slots=True)
class StackedLora:
    """A LoRA of a stack. `when`: "every prompt", a kind of edit such as "camera", or a tag such as "@angle" that starts a prompt."""

    path: Path
    key: str  # hash of the file's bytes
    weight: float
    when: str = ALWAYS
    trigger: str = ""

    def __post_init__(self) -> None:
        if self.when != ALWAYS and self.when not in KINDS and not re.fullmatch(r"@[\w-]+", self.when):
            raise LoraError(
                f"{self.path.name}: {self.when!r} says for no prompt when to use it. Write {ALWAYS!r}, one of {', '.join(KINDS)}, or a tag such as @angle."
            )

    @property
    def name(self) -> str:
        return self.path.stem

    def applies_to(self, kind: str, tags: Sequence[str]) -> bool:
        return self.when in (ALWAYS, kind) or self.when in tags


@dataclass(frozen=True, slots=True)
class LoraStack:
    """LoRAs in order; the changes add up. One with weight 0 is not there: it is not loaded and changes no fingerprint."""

    loras: tuple[StackedLora, ...] = ()

    def __iter__(self) -> Iterator[StackedLora]:
        return iter(self.loras)

    def plus(self, lora: StackedLora) -> LoraStack:
        return LoraStack((*self.loras, lora) if lora.weight else self.loras)

    def for_prompt(self, prompt: str, tags: Sequence[str]) -> tuple[StackedLora, ...]:
        """The LoRAs this prompt uses.

        Raises:
            EditorError: a tag that no LoRA of the stack has.
        """
        known = {lora.when for lora in self.loras if lora.when.startswith("@")}
        if unknown := [tag for tag in tags if tag not in known]:
            have = f"it has {', '.join(sorted(known))}" if known else "it has none with a tag"
            raise EditorError(f"{unknown[0]} names no LoRA of the stack ({have}). Set when_to_use of a LoRA Stack node to {unknown[0]}.")
        kind = parse(prompt).kind
        return tuple(lora for lora in self.loras if lora.applies_to(kind, tags))

    def described(self) -> str:
        return (
            ", ".join(f"{lora.name} x {lora.weight:g}{'' if lora.when == ALWAYS else f' ({lora.when})'}" for lora in self.loras) or "none"
        )


def stacked(path: Path, weight: float, when: str = ALWAYS, trigger: str = "") -> StackedLora:
    """A LoRA for a stack, named by its bytes.

    Raises:
        LoraError: see `inspect`, or `when` is none.
    """
    inspect(path)
    stat = path.stat()
    return StackedLora(path, _key(path, stat.st_mtime_ns, stat.st_size), weight, when.strip() or ALWAYS, trigger.strip())


@lru_cache(maxsize=256)
def _key(path: Path, _modified: int, _size: int) -> str:
    return content_key(path)


def split_tags(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The words of a prompt and the tags before them: "@angle Turn left" asks for "Turn left" with the LoRAs tagged @angle."""
    found = _TAGS.match(prompt.lstrip())
    if not found:
        return prompt, ()
    return prompt.lstrip()[found.end() :], tuple(found[0].split())


def with_triggers(prompt: str, loras: Iterable[StackedLora]) -> str:
    """The prompt with the trigger words of its LoRAs before it, each once."""
    words = [lora.trigger for lora in loras if lora.trigger and lora.trigger not in prompt]
    return " ".join([*dict.fromkeys(words), prompt])


def fingerprint(loras: Iterable[StackedLora]) -> str:
    """What of the LoRAs can change a pixel: bytes, weights and trigger words, in order."""
    return "; ".join(f"{lora.key} x {lora.weight:g}{f' {lora.trigger!r}' if lora.trigger else ''}" for lora in loras)
