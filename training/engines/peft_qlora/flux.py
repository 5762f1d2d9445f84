"""FLUX.1-dev: a character from captioned images. Words of T5 and CLIP are encoded once; the guidance that the model was distilled with is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ....flywheel.editors.qwen import denoise, latents, load, memory
from ....flywheel.editors.qwen.cache import TensorCache
from ....flywheel.editors.qwen.models import ModelFolder, damage, read_json
from ....flywheel.errors import EditorUnavailable
from ....flywheel.images import content_key, value_key
from .draws import shift_of
from .families import Encoded, Say, Shown, base_bytes, base_facts, dtype_on, missing_encoded, read
from .plan import PATCH, Size

if TYPE_CHECKING:
    from . import PeftQloraOptions

NEEDED = ("model_index.json", "scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae")
WEIGHTS = ("text_encoder", "text_encoder_2", "transformer", "vae")
HOW_TO_GET = (
    "FLUX.1-dev is the folder black-forest-labs/FLUX.1-dev on huggingface.co (transformer 24 GB, text encoders 10 GB, VAE 0.2 GB); accept its licence"
    " there, download the folder yourself and give it here. To train on a single .safetensors file, choose kohya."
)
T5_TOKENS = 512
ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v)"
)
MLP = r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)"


class Flux:
    """One model folder. What is encoded is kept in `cache` by content."""

    targets: Mapping[str, str] = {
        "attention": f"({ATTENTION})",
        "attention and mlp": f"({ATTENTION}|{MLP})",
        "all": f"({ATTENTION}|{MLP}|x_embedder|context_embedder|proj_out)",
    }

    def __init__(self, root: Path, options: PeftQloraOptions, cache: Path, device: torch.device) -> None:
        self.model = _opened(root)
        self.options, self.device, self.dtype, self.folder = options, device, dtype_on(device), cache
        self.model_name = root.name
        self.scheduler = self.model.config("scheduler")
        self.words, self.pixels = TensorCache(cache / "words"), TensorCache(cache / "latents")
        self.keys = {part: self.model.key(part) for part in ("text_encoder", "text_encoder_2", "vae")}
        self.contents: dict[Path, str] = {}
        self.transformer: Any = None
        self.vae: Any = None

    def facts(self) -> list[str]:
        size = base_bytes(self.model, self.options.precision, self.dtype)
        return base_facts(self.model, self.options.precision, self.device, size, self.folder)

    def layers(self) -> Mapping[str, tuple[int, int] | None]:
        return self.model.linears()

    def tokens(self, size: Size) -> tuple[int, int]:
        return (size[0] // PATCH) * (size[1] // PATCH), 4 * self.model.config("vae").get("latent_channels", 16)

    def shift(self, size: Size) -> float:
        return shift_of(self.scheduler, self.tokens(size)[0])

    # --- before the training

    @torch.no_grad()
    def encode(self, shown: Sequence[Shown], prompts: Sequence[str], say: Say) -> None:
        blank = [""] if self.options.caption_dropout else []
        wanted = list(dict.fromkeys([*prompts, *blank]))
        if missing := [text for text in wanted if self._words_key(text) not in self.words]:
            self._encode_words(missing, say)
        pictures = {self._pixels_key(one): one for one in shown}
        left = [(key, one) for key, one in pictures.items() if key not in self.pixels]
        if left or self.options.sample_steps:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            loaded: Any = AutoencoderKL.from_pretrained(str(self.model.root / "vae"), torch_dtype=self.dtype, local_files_only=True)
            self.vae = loaded.requires_grad_(False).eval().to(self.device)
        for number, (key, one) in enumerate(left, start=1):
            say(f"encoding pictures {number} of {len(left)}")
            made = self._latents(read(one.example.image, one.sizes[0]), one.sizes[0])
            self.pixels.get(key, lambda made=made: {"latents": made})
        if self.vae is not None:
            self.vae.to("cpu")
            memory.release()

    def _encode_words(self, texts: Sequence[str], say: Say) -> None:
        import transformers

        say("loading the text encoders")
        made: list[Any] = []
        for kind, part in (("CLIPTextModel", "text_encoder"), ("T5EncoderModel", "text_encoder_2")):
            loaded: Any = getattr(transformers, kind).from_pretrained(str(self.model.root / part), dtype=self.dtype, local_files_only=True)
            made.append(loaded.eval().to(self.device))
        clip, t5 = made
        short, long = (
            getattr(transformers, kind).from_pretrained(str(self.model.root / part), local_files_only=True)
            for kind, part in (("CLIPTokenizer", "tokenizer"), ("T5TokenizerFast", "tokenizer_2"))
        )
        for number, text in enumerate(texts, start=1):
            say(f"encoding words {number} of {len(texts)}")
            kind = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            pooled = clip(short(text, max_length=77, **kind).input_ids.to(self.device)).pooler_output
            states = t5(long(text, max_length=T5_TOKENS, **kind).input_ids.to(self.device))[0]
            self.words.get(self._words_key(text), lambda states=states, pooled=pooled: {"words": states, "pooled": pooled})
        del clip, t5, made, loaded
        memory.release()

    def _latents(self, picture: Image.Image, size: Size) -> torch.Tensor:
        """The mode, (1, 16, 1, H/8, W/8), shifted and scaled as the transformer knows it."""
        import numpy as np

        pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / 127.5 - 1
        frame = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device, self.dtype)
        config = self.vae.config
        return ((self.vae.encode(frame).latent_dist.mode().float() - config.shift_factor) * config.scaling_factor)[:, :, None]

    def _words_key(self, text: str) -> str:
        return value_key([self.keys["text_encoder"], self.keys["text_encoder_2"], str(self.dtype), text])

    def _pixels_key(self, one: Shown) -> str:
        path = one.example.image
        if path not in self.contents:
            self.contents[path] = content_key(path)
        return value_key([self.keys["vae"], str(self.dtype), self.contents[path], list(one.sizes[0])])

    def encoded(self, shown: Shown, prompt: str) -> Encoded:
        target = latents.pack(self.pixels.get(self._pixels_key(shown), missing_encoded)["latents"])
        words = dict(self.words.get(self._words_key(prompt), missing_encoded))
        blank = dict(self.words.get(self._words_key(""), missing_encoded)) if self.options.caption_dropout else {}
        return Encoded(target, target[:, :0], words, blank)

    # --- the transformer

    def load(self, times: torch.Tensor, sampled: Sequence[Size], say: Say) -> None:  # noqa: ARG002 - nothing depends on the noise levels
        from accelerate import init_empty_weights
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        say("loading the transformer")
        config = {name: value for name, value in self.model.config("transformer").items() if not name.startswith("_")}
        with init_empty_weights():
            made: Any = FluxTransformer2DModel.from_config(config)
        precision: Any = self.options.precision
        load.fill(
            made,
            load.sizes_of(made),
            self.model,
            precision=precision,
            dtype=self.dtype,
            device=self.device,
            cache=self.folder,
            progress=lambda done, of: say(f"loading the transformer, {100 * done // max(1, of)} %"),
        )
        self.transformer = made.requires_grad_(False).eval()

    def velocity(
        self, batch: Sequence[Encoded], shown: Sequence[Shown], blank: Sequence[bool], x: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        told = [one.blank if left_out else one.words for one, left_out in zip(batch, blank, strict=True)]
        return self._predicted(x, times, told, shown[0].sizes[0], self.options.flux_guidance)

    def _predicted(
        self, x: torch.Tensor, times: torch.Tensor, told: Sequence[Mapping[str, torch.Tensor]], size: Size, guidance: float
    ) -> torch.Tensor:
        words, pooled = (torch.cat([one[name] for one in told]).to(self.device, self.dtype) for name in ("words", "pooled"))
        guided = bool(self.model.config("transformer").get("guidance_embeds"))
        return self.transformer(
            hidden_states=x.to(self.device, self.dtype),
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=times.to(self.device),
            guidance=torch.full((len(x),), guidance, device=self.device) if guided else None,
            txt_ids=torch.zeros(words.shape[1], 3, device=self.device),
            img_ids=_places(size).to(self.device),
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def sample(self, one: Encoded, shown: Shown, seed: int) -> Image.Image:
        size = shown.sizes[0]
        count, channels = self.tokens(size)
        levels = denoise.sigmas(self.scheduler, self.options.sample_steps, count)
        x = denoise.noise(seed, size, channels // 4)
        for now, then in pairwise(levels):
            x = x + (then - now) * self._predicted(x, now[None], [one.words], size, self.options.sample_guidance).cpu()
        config = self.vae.config
        frame = latents.unpack(x, size)[:, :, 0] / config.scaling_factor + config.shift_factor
        self.vae.to(self.device)
        pixels = self.vae.decode(frame.to(self.device, self.dtype), return_dict=False)[0]
        self.vae.to("cpu")
        return latents.pictures((pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().nan_to_num(0))[0]


def _places(size: Size) -> torch.Tensor:
    """Row and column of every token, (N, 3); the first number is none."""
    rows, columns = size[1] // PATCH, size[0] // PATCH
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())
    return grid.reshape(-1, 3)


def _opened(root: Path) -> ModelFolder:
    """
    Raises:
        EditorUnavailable: it is no FLUX.1 folder, or parts of it are missing; names each.
    """
    if not root.is_dir():
        raise EditorUnavailable(f"{root.name} is not a folder. {HOW_TO_GET}")
    model = ModelFolder(root)
    kind = read_json(root / "model_index.json").get("_class_name", "") if (root / "model_index.json").is_file() else "FluxPipeline"
    problems = [f"its model_index.json says {kind or 'nothing'}, not FluxPipeline"] if kind != "FluxPipeline" else []
    problems = problems or [f"{name} is missing" for name in NEEDED if not (root / name).exists()]
    if not problems:
        problems = [f"{part}/ holds no .safetensors file" for part in WEIGHTS if not model.files(part)]
        problems += [f"{part}: {path.name} {trouble}" for part in WEIGHTS for path in model.files(part) if (trouble := damage(path))]
    if problems:
        raise EditorUnavailable(f"The model folder {root.name} cannot be used: {'; '.join(problems)}. {HOW_TO_GET}")
    return model
