"""The first node of every graph: which character."""

from __future__ import annotations

from comfy_api.latest import io

from ..flywheel.project import open_project
from . import host, sockets


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
                    tooltip="The ordinary word for what the character is: person, woman, man, dog, robot … If it is drawn, say so here (anime girl,"
                    " cartoon dog): faces are then not scored, because the engines know photographs only.",
                ),
                io.Int.Input(
                    "version",
                    default=1,
                    min=1,
                    max=9999,
                    tooltip="The turn of the wheel. 1 writes to folders called v1. Raise it when you start again with an improved set.",
                ),
            ],
            outputs=[sockets.PROJECT.Output("project", tooltip="Connect to Curate Source.")],
            search_aliases=["character", "flywheel", "instance token", "trigger word"],
        )

    @classmethod
    def execute(cls, name: str, instance_token: str, class_noun: str, version: int) -> io.NodeOutput:
        return io.NodeOutput(open_project(host.home(), name, instance_token=instance_token, class_noun=class_noun, lap=version))


NODES = [ProjectNode]
