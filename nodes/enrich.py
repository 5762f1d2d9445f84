"""Step 1.2: photographs times prompts times editor."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import candidates, enrich, identity
from ..flywheel.dataset import Dataset
from ..flywheel.editors import Editor
from ..flywheel.prompts import PromptSet
from ..flywheel.sheets import stacked
from . import host, options, sockets
from .options import base_seed, megapixels
from .pictures import pairs

FLAG, REALIGN = "flag", "flag and add a re-aligned copy"


class EnrichDataset(io.ComfyNode):
    """Makes edited candidates of every photo. Each image is on disk before the bar moves on, so you can cancel, crash or restart: queue again
    and only what is missing is made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_EnrichDataset",
            display_name="Enrich Dataset",
            category="FLENwheel/enrich",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="The photos to edit."),
                sockets.PROMPTS.Input("prompts", tooltip="The edits to ask for."),
                sockets.EDITOR.Input("editor", tooltip="Who makes them: the rehearsal editor for a dry run, or a real one."),
                base_seed("Each image's own seed is derived from this, its photo and its prompt. Another number makes a different set."),
                megapixels("Size of the results. The photo's shape is kept, nothing is cropped. 1.0 is about 1024 x 1024."),
                options.sample_every(),
                options.limit(),
                io.Int.Input(
                    "retries_on_drift",
                    default=0,
                    min=0,
                    max=10,
                    tooltip="When references are connected: try an image that lost the face again with a new seed, up to this many times. All tries are kept.",
                ),
                io.Float.Input(
                    "drift_threshold",
                    default=identity.THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Similarity below which an image counts as drifted: 0.60 is about where strangers begin.",
                ),
                io.Combo.Input(
                    "shifted_edits",
                    options=[FLAG, REALIGN],
                    default=FLAG,
                    optional=True,
                    tooltip="Edits that slid or grew against their photo spoil training pairs. Flag them only, or also add a copy moved back into the photo's frame, for you to review.",
                ),
                sockets.REFERENCES.Input("references", optional=True, tooltip="The character's face; needed only for retries on drift."),
            ],
            outputs=[
                sockets.DATASET.Output("candidates", tooltip="The edited images. Next: Identity Score, then Review Gate."),
                io.String.Output("report", tooltip="What was made, what was there already, what failed and why."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["augment", "batch edit", "synthetic data", "qwen image edit"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when an image it had made is no longer there."""
        return host.fingerprint("enriched", candidates.missing)

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        prompts: PromptSet,
        editor: Editor,
        base_seed: int,
        megapixels: float,
        sample_every: int,
        limit: int,
        retries_on_drift: int,
        drift_threshold: float,
        shifted_edits: str = FLAG,
        references: sockets.References | None = None,
    ) -> io.NodeOutput:
        drift = (
            enrich.Drift(references.faces, references.embedder, drift_threshold, retries_on_drift)
            if references and retries_on_drift
            else None
        )
        enriched = enrich.enrich(
            dataset,
            prompts,
            editor,
            seed=base_seed,
            megapixels=megapixels,
            sample_every=sample_every,
            limit=limit,
            drift=drift,
            realign=shifted_edits == REALIGN,
            report=host.Reporter(cls.hidden.unique_id, f"Enriching with {editor.name}"),
        )
        notes = [*enriched.notes]
        if retries_on_drift and not references:
            notes.append("Drifted images were not tried again: connect references for that.")
        text = "\n".join([f"{len(enriched.dataset.images)} candidates in {enriched.dataset.stage.folder}", *notes])
        host.log.info("Enriched: %s", " ".join(enriched.notes))
        return io.NodeOutput(enriched.dataset, text, ui=host.shown(text))


class PreviewFour(io.ComfyNode):
    """Makes four images of the plan, with different prompts and photos, and shows them beside their photos with the time all the others will
    take. Nothing behind it runs until you switch go_on; the four are kept and not made again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_PreviewFour",
            display_name="Preview Four",
            category="FLENwheel/enrich",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="The photos to edit, as for Enrich Dataset."),
                sockets.PROMPTS.Input("prompts", tooltip="The edits to ask for."),
                sockets.EDITOR.Input("editor", tooltip="Who makes them."),
                io.Boolean.Input(
                    "go_on", default=False, tooltip="Switch on when you like what you see: then Enrich Dataset makes the rest."
                ),
                base_seed("Same as in Enrich Dataset, so that these four are part of the batch."),
                megapixels("Same as in Enrich Dataset: size of the results."),
            ],
            outputs=[
                sockets.PROMPTS.Output("prompts_out", display_name="prompts", tooltip="Connect to Enrich Dataset; held back until go_on."),
                io.Image.Output("sheet", tooltip="Photos and edits side by side."),
                io.String.Output("report", tooltip="How long one image took and how long the rest will take."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["test render", "time estimate", "probe"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when an image it had made is no longer there."""
        return host.fingerprint("enriched", candidates.missing)

    @classmethod
    def execute(cls, dataset: Dataset, prompts: PromptSet, editor: Editor, go_on: bool, base_seed: int, megapixels: float) -> io.NodeOutput:
        report = host.Reporter(cls.hidden.unique_id, f"Preview with {editor.name}")
        made = enrich.preview(dataset, prompts, editor, seed=base_seed, megapixels=megapixels, report=report)
        sheet = stacked(pairs(made.dataset, made.dataset.images))
        report.end_with(sheet)
        text = "\n".join([*made.notes, _rest(made), "Going on." if go_on else "Switch go_on and queue again to make the rest."])
        shown = host.tensor(sheet)
        return io.NodeOutput(prompts if go_on else ExecutionBlocker(None), shown, text, ui=host.shown(text, shown, cls))


def _rest(made: enrich.Preview) -> str:
    if not made.left or made.seconds_each is None:
        return f"{made.left} images are left."
    return f"{made.left} images are left: about {host.duration(made.left * made.seconds_each)} at {made.seconds_each:.1f} s each."


NODES = [EnrichDataset, PreviewFour]
