"""The types that travel between our nodes: small frozen values, never pixels."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

from ..flywheel.faces import Embedder
from ..flywheel.identity import ReferenceSet
from ..flywheel.project import Project
from ..training.spec import TrainingSpec

PROJECT = io.Custom("FLEN_PROJECT")  # flywheel.project.Project
DATASET = io.Custom("FLEN_DATASET")  # flywheel.dataset.Dataset
PROMPTS = io.Custom("FLEN_PROMPTS")  # flywheel.prompts.PromptSet
EDITOR = io.Custom("FLEN_EDITOR")  # flywheel.editors.Editor
REFERENCES = io.Custom("FLEN_REFERENCES")  # References, below
LORAS = io.Custom("FLEN_LORAS")  # flywheel.lora.LoraStack
PAIRS = io.Custom("FLEN_PAIRS")  # flywheel.pairs.PairedDataset; None where nothing is held out
SCORES = io.Custom("FLEN_SCORES")  # flywheel.identity.Scores
TRAINING = io.Custom("FLEN_TRAINING")  # Training, below
JOB = io.Custom("FLEN_JOB")  # training.job.Job
NO_PAIRS = "No pairs came over the link: nothing is held out."


@dataclass(frozen=True, slots=True)
class References:
    """A reference set with the engine that measured it: one is no use without the other."""

    faces: ReferenceSet
    embedder: Embedder


@dataclass(frozen=True, slots=True)
class Training:
    """What shall be trained, and whose."""

    project: Project
    spec: TrainingSpec
