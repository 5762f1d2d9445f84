"""LoRAs for editors: which, how strong, for which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..flywheel import lora, lora_registry, qwen
from ..flywheel.errors import LoraError
from . import host, sockets

TAG = "a tag…"
USUAL = "as usual"


class LoraStackNode(io.ComfyNode):
    """Adds a LoRA to an editor. Chain several: their changes add up in order. A LoRA can be for all prompts or only for some, for example an
    angle LoRA for camera prompts. Says what the file is before anything is loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_LoraStack",
            display_name="LoRA Stack",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A file of ComfyUI's models/loras folder, in whatever trainer's format.",
                ),
                _strength("weight", "How strong it works. 1 is as trained, 0 is exactly as without it."),
                _enabled(),
                io.Combo.Input(
                    "when_to_use",
                    options=[lora.ALWAYS, *lora.KINDS, TAG],
                    default=lora.ALWAYS,
                    tooltip="Which prompts use it: every one, only those that ask for a background, lighting, style or camera change, or those that start with a tag.",
                ),
                _tag_widget(),
                io.String.Input(
                    "trigger_words",
                    default="",
                    tooltip="Put before every prompt that uses the LoRA, if it was trained with such words. Empty adds none.",
                ),
                sockets.LORAS.Input("loras", optional=True, tooltip="More LoRAs: another LoRA Stack."),
            ],
            outputs=[
                sockets.LORAS.Output("loras_out", display_name="loras", tooltip="Connect to an editor or to the next LoRA Stack."),
                io.String.Output("report", tooltip="What the file is and what the stack holds."),
            ],
            search_aliases=["lora loader", "power lora"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> str:
        """Changes when the file does."""
        return _revision(lora_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        weight: float,
        enabled: bool,
        when_to_use: str,
        tag: str,
        trigger_words: str,
        loras: lora.LoraStack | None = None,
    ) -> io.NodeOutput:
        when = _tag(tag) if when_to_use == TAG else when_to_use
        one = lora.stacked(_path(lora_name), weight if enabled else 0.0, when, trigger_words)
        stack = (loras or lora.LoraStack()).plus(one)
        text = "\n".join([f"{lora_name}: {lora.inspect(one.path).described()}.", *_advice(one), f"Stack: {stack.described()}."])
        return io.NodeOutput(stack, text, ui=host.shown(text))


class LoraFromRegistry(io.ComfyNode):
    """A LoRA by name: a published one that is known to work for editing, or one that you trained here. Brings its usual strength, its trigger words
    and the prompts it is for. If it is not on your disk, it says what to download from where. Chain it like LoRA Stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_LoraFromRegistry",
            display_name="LoRA from Registry",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            inputs=[
                io.Combo.Input(
                    "lora_entry",
                    display_name="lora",
                    options=[entry.choice for entry in lora_registry.entries(folder_paths.get_filename_list("loras"))],
                    tooltip="First those you trained here (project and file), then published ones with the model each was made for.",
                ),
                _strength("strength", "Times its usual weight, which the report shows. 1 is as recommended, 0 is exactly as without it."),
                _enabled(),
                io.Combo.Input(
                    "when_to_use",
                    options=[USUAL, lora.ALWAYS, *lora.KINDS, TAG],
                    default=USUAL,
                    tooltip="Which prompts use it. 'as usual' is what it was made for, for example camera prompts for an angle LoRA.",
                ),
                _tag_widget(),
                io.Boolean.Input(
                    "use_trigger_words",
                    default=True,
                    tooltip="Put its trigger words before every prompt that uses it. The report shows them; some LoRAs have none.",
                ),
                sockets.LORAS.Input("loras", optional=True, tooltip="More LoRAs: another LoRA Stack or LoRA from Registry."),
            ],
            outputs=[
                sockets.LORAS.Output("loras_out", display_name="loras", tooltip="Connect to an editor or to the next LoRA Stack."),
                io.String.Output("trigger_words", tooltip="Its trigger words; empty if it has none."),
                io.String.Output("report", tooltip="What it does, how to prompt it, what the file is and what the stack holds."),
            ],
            search_aliases=["lora loader", "lightning", "multiple angles", "relight", "trained lora"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_entry: str, **_: Any) -> str:
        """Changes when the file does, or when it arrives."""
        entries = lora_registry.entries(folder_paths.get_filename_list("loras"))
        return _revision(next((entry.name for entry in entries if entry.choice == lora_entry), ""))

    @classmethod
    def execute(
        cls,
        lora_entry: str,
        strength: float,
        enabled: bool,
        when_to_use: str,
        tag: str,
        use_trigger_words: bool,
        loras: lora.LoraStack | None = None,
    ) -> io.NodeOutput:
        entry = lora_registry.find(lora_entry, folder_paths.get_filename_list("loras"), Path(folder_paths.get_folder_paths("loras")[0]))
        path = _path(entry.name)
        file = lora.inspect(path)
        trigger = lora_registry.trigger_of(entry, file)
        when = entry.when if when_to_use == USUAL else _tag(tag) if when_to_use == TAG else when_to_use
        one = lora.stacked(path, round(strength * entry.weight, 4) if enabled else 0.0, when, trigger if use_trigger_words else "")
        stack = (loras or lora.LoraStack()).plus(one)
        words = [f"Trigger words: {trigger}{'' if use_trigger_words else ' (not used)'}."] if trigger else []
        off = [] if one.weight else ["It is off."]
        text = "\n".join(
            [lora_registry.described(entry, file), *words, f"{entry.name}: {file.described()}.", *off, f"Stack: {stack.described()}."]
        )
        return io.NodeOutput(stack, trigger, text, ui=host.shown(text))


def _strength(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip)


def _enabled() -> io.Boolean.Input:
    return io.Boolean.Input("enabled", default=True, tooltip="Off takes it out of the stack and leaves the rest as it is.")


def _tag_widget() -> io.String.Input:
    return io.String.Input(
        "tag",
        default="@angle",
        tooltip="With 'a tag…' above: prompts that start with this word use the LoRA. The word itself is not sent to the model.",
    )


def _path(name: str) -> Path:
    """
    Raises:
        LoraError: it is no longer below models/loras.
    """
    found = folder_paths.get_full_path("loras", name)
    if not found:
        raise LoraError(f"There is no {name} in ComfyUI's models/loras folder any more. Choose another or put it back.")
    return Path(found)


def _revision(name: str) -> str:
    """Changes when this file below models/loras does; empty while it is missing."""
    path = folder_paths.get_full_path("loras", name) if name else None
    if not path:
        return ""
    stat = Path(path).stat()
    return f"{stat.st_mtime_ns} {stat.st_size}"


def _tag(text: str) -> str:
    return text.strip() if text.strip().startswith("@") else f"@{text.strip()}"


def _advice(one: lora.StackedLora) -> list[str]:
    row, noted = qwen.known(one.name), lora.inspect(one.path).trigger
    words = [f"Its trainer noted the trigger words: {noted}"] if noted and noted not in one.trigger else []
    off = ["It is off." if not one.weight else ""]
    return [line for line in ([row.described()] if row else []) + words + off if line]


NODES = [LoraStackNode, LoraFromRegistry]
