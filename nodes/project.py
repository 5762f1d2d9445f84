"""The first node of every graph: which character."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flywheel.project import MEDIA, medium_named, open_project, said_medium
from . import host, sockets

AS_BEFORE = "as said before"


class ProjectNode(io.ComfyNode):
    """One character and its folder. Everything the wheel makes is kept there, below ComfyUI's output folder, and can be moved as one folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_Project",
            display_name="Project",
            category="FLENwheel/project",
            description=cls.__doc__ or "",
            inputs=[
                io.String.Input(
                    "name", default="my character", tooltip="Name of the character; also names its folder in output/flenwheel/."
                ),
                io.String.Input(
                    "instance_token",
                    default="ohwx_char",
                    tooltip="A rare word that will mean this character in captions and prompts, such as ohwx_char. Never a normal word or name.",
                ),
                io.String.Input(
                    "class_noun",
                    default="person",
                    tooltip="The ordinary word for what the character is: person, woman, man, dog, robot …",
                ),
                io.Int.Input(
                    "version",
                    default=1,
                    min=1,
                    max=9999,
                    tooltip="The turn of the wheel. 1 writes to folders called v1. Raise it when you start again with an improved set.",
                ),
                io.Combo.Input(
                    "pictures_are",
                    options=[AS_BEFORE, *MEDIA],
                    default=AS_BEFORE,
                    optional=True,
                    tooltip="Say it once for each character. photographs: also generated ones that look like photographs. drawn: anime, comics, paintings,"
                    " stylised characters, 3D cartoons, dolls; no face is then scored, because the face engines learned from photographs and what they say of a drawn"
                    " face means nothing, and every image goes to your review.",
                ),
            ],
            outputs=[sockets.PROJECT.Output("project", tooltip="Connect to Curate Source.")],
            search_aliases=["character", "flywheel", "instance token", "trigger word"],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, pictures_are: str = AS_BEFORE, **_: Any) -> str:
        return str(said_medium(host.home(), name or "")) if pictures_are == AS_BEFORE else ""  # another graph may say it

    @classmethod
    def execute(cls, name: str, instance_token: str, class_noun: str, version: int, pictures_are: str = AS_BEFORE) -> io.NodeOutput:
        said = medium_named(pictures_are)
        return io.NodeOutput(
            open_project(host.home(), name, instance_token=instance_token, class_noun=class_noun, medium=said, lap=version)
        )


NODES = [ProjectNode]
