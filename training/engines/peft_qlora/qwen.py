"""Qwen-Image-Edit 2509, 2511 and their like: 1 to 3 controls, words encoded about the pictures, timestep layers as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ....flywheel.editors.qwen import denoise, encode, latents, load, memory, modulation
from ....flywheel.editors.qwen.cache import TensorCache
from ....flywheel.editors.qwen.models import open_folder
from ....flywheel.editors.qwen.tensors import TensorFiles
from ....flywheel.images import content_key, value_key
from .draws import shift_of
from .families import Encoded, Say, Shown, base_bytes, base_facts, dtype_on, missing_encoded, read
from .plan import PATCH, Size

if TYPE_CHECKING:
    from . import PeftQloraOptions

NOTHING = " "  # the words of an unconditional prediction, in training and in sampling
ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
MLP = r"transformer_blocks\.\d+\.(img|txt)_mlp\.net\.(0\.proj|2)"


class QwenEdit:
    """One model folder. Everything encoded is kept in `cache` by content, so another run on the same data loads no encoder at all."""

    targets: Mapping[str, str] = {
        "attention": ATTENTION,
        "attention and mlp": f"({ATTENTION}|{MLP})",
        "all": f"({ATTENTION}|{MLP}|img_in|txt_in|proj_out)",
    }

    def __init__(self, root: Path, options: PeftQloraOptions, cache: Path, device: torch.device) -> None:
        self.model = open_folder(str(root))
        self.options, self.device, self.dtype, self.folder = options, device, dtype_on(device), cache
        self.model_name = self.model.root.name
        self.scheduler = self.model.config("scheduler")
        self.words, self.pixels = TensorCache(cache / "words"), TensorCache(cache / "latents")
        self.keys = {part: self.model.key(part) for part in ("text_encoder", "vae")}
        self.contents: dict[Path, str] = {}
        self.transformer: Any = None
        self.vae: Any = None
        self.tables: modulation.Tables | None = None
        self.levels: dict[Size, torch.Tensor] = {}

    def facts(self) -> list[str]:
        size = base_bytes(self.model, self.options.precision, self.dtype, without=modulation.belongs)
        return base_facts(self.model, self.options.precision, self.device, size, self.folder)

    def layers(self) -> Mapping[str, tuple[int, int] | None]:
        return self.model.linears()

    def tokens(self, size: Size) -> tuple[int, int]:
        return (size[0] // PATCH) * (size[1] // PATCH), 4 * self.model.config("vae").get("z_dim", 16)

    def shift(self, size: Size) -> float:
        return shift_of(self.scheduler, self.tokens(size)[0])

    # --- before the training

    def encode(self, shown: Sequence[Shown], prompts: Sequence[str], say: Say) -> None:
        blank = [(one, NOTHING) for one in shown if self.options.caption_dropout or self.options.sample_steps]
        words = {self._words_key(one, text): (one, text) for one, text in [*zip(shown, prompts, strict=True), *blank]}
        if missing := [(key, *words[key]) for key in words if key not in self.words]:
            say("loading the text encoder")
            precision: Any = self.options.text_encoder
            encoder = load.text_encoder(self.model, precision=precision, dtype=self.dtype, device=self.device)
            processor, template = load.processor(self.model), encode.template_of(self.model.pipeline_class)
            for number, (key, one, text) in enumerate(missing, start=1):
                say(f"encoding words {number} of {len(missing)}")
                pictures = [read(path, size) for path, size in zip(one.example.controls, one.sizes[1:], strict=True)]
                made = encode.encode(encoder, processor, template, text, pictures)
                self.words.get(key, lambda made=made: {"words": made})
            del encoder
            memory.release()
        self._encode_pictures(shown, say)

    def _encode_pictures(self, shown: Sequence[Shown], say: Say) -> None:
        pictures = {self._pixels_key(path, size): (path, size) for one in shown for path, size in _pictures(one)}
        missing = [(key, *pictures[key]) for key in pictures if key not in self.pixels]
        if missing or self.options.sample_steps:
            self.vae = load.vae(self.model, dtype=self.dtype, device=self.device)
        for number, (key, path, size) in enumerate(missing, start=1):
            say(f"encoding pictures {number} of {len(missing)}")
            made = latents.encode(self.vae, read(path, size), size)
            self.pixels.get(key, lambda made=made: {"latents": made})
        if self.vae is not None:
            self.vae.to("cpu")
            memory.release()

    def _words_key(self, one: Shown, text: str) -> str:
        controls = [[self._content(path), list(size)] for path, size in zip(one.example.controls, one.sizes[1:], strict=True)]
        return value_key([self.keys["text_encoder"], self.options.text_encoder, str(self.dtype), text, controls])

    def _pixels_key(self, path: Path, size: Size) -> str:
        return value_key([self.keys["vae"], str(self.dtype), self._content(path), list(size)])

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = content_key(path)
        return self.contents[path]

    def encoded(self, shown: Shown, prompt: str) -> Encoded:
        def tokens(path: Path, size: Size) -> torch.Tensor:
            return latents.pack(self.pixels.get(self._pixels_key(path, size), missing_encoded)["latents"])

        def words(text: str) -> dict[str, torch.Tensor]:
            return dict(self.words.get(self._words_key(shown, text), missing_encoded))

        target, *controls = (tokens(path, size) for path, size in _pictures(shown))
        blank = words(NOTHING) if self.options.caption_dropout or self.options.sample_steps else {}
        return Encoded(target, torch.cat(controls, dim=1), words(prompt), blank)

    # --- the transformer

    def load(self, times: torch.Tensor, sampled: Sequence[Size], say: Say) -> None:
        files = TensorFiles(self.model.files("transformer"))
        config = self.model.config("transformer")
        self.levels = {
            size: denoise.sigmas(self.scheduler, self.options.sample_steps, self.tokens(size)[0]) for size in dict.fromkeys(sampled)
        }
        all_times = torch.cat([times, *(denoise.times(levels) for levels in self.levels.values())])
        say("tabulating the timesteps")
        grid = modulation.grid(all_times, self.dtype, zero=bool(config.get("zero_cond_t")))
        self.tables = modulation.build(
            files.read,
            config["num_layers"],
            grid,
            self.dtype,
            device=self.device,
            on_layer=lambda done, of: say(f"tabulating the timesteps, block {done + 1} of {of}"),
        )
        say("loading the transformer")
        precision: Any = self.options.precision
        self.transformer, _ = load.transformer(
            self.model,
            self.tables.pick(times[:1]),
            precision=precision,
            dtype=self.dtype,
            device=self.device,
            cache=self.folder,
            progress=lambda done, of: say(f"loading the transformer, {100 * done // max(1, of)} %"),
        )

    def _at(self, times: torch.Tensor) -> None:
        """Put the rows of these noise levels into the transformer: of all tables only they are on the card."""
        assert self.tables
        modulation.install(self.transformer, self.tables.pick(times.to(self.dtype).float().cpu()), device=self.device)

    def velocity(
        self, batch: Sequence[Encoded], shown: Sequence[Shown], blank: Sequence[bool], x: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        self._at(times)
        controls = torch.cat([one.controls for one in batch]).to(self.device)
        told = [(one.blank if left_out else one.words)["words"] for one, left_out in zip(batch, blank, strict=True)]
        words, mask = denoise.padded(told, self.dtype, self.device)
        out = self.transformer(
            hidden_states=torch.cat([x.to(self.device), controls], dim=1).to(self.dtype),
            encoder_hidden_states=words,
            encoder_hidden_states_mask=mask,
            timestep=times.to(self.device),
            img_shapes=[_shapes(one) for one in shown],
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]].float()

    @torch.no_grad()
    def sample(self, one: Encoded, shown: Shown, seed: int) -> Image.Image:
        size, guidance = shown.sizes[0], self.options.sample_guidance
        levels = self.levels[size]
        self._at(denoise.times(levels))
        unwanted = one.blank["words"] if guidance > 1 else None
        channels = self.tokens(size)[1] // 4
        cell = denoise.Cell(denoise.noise(seed, size, channels), one.controls, one.words["words"], unwanted, tuple(_shapes(shown)))
        tokens = denoise.denoise(self.transformer, [cell], levels, guidance=guidance, dtype=self.dtype, device=self.device)
        self.vae.to(self.device)
        pixels = latents.decode(self.vae, latents.unpack(tokens, size))
        self.vae.to("cpu")
        return latents.pictures(pixels.nan_to_num(0))[0]


def _pictures(shown: Shown) -> list[tuple[Path, Size]]:
    return list(zip((shown.example.image, *shown.example.controls), shown.sizes, strict=True))


def _shapes(shown: Shown) -> list[tuple[int, int, int]]:
    return [latents.shape_of(size) for size in shown.sizes]
