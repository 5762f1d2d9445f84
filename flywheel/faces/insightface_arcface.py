"""ArcFace with insightface's own model packs: an optional engine that also knows profiles. Off unless it is chosen; for non-commercial research only."""

from __future__ import annotations

from . import Embedder
from .insightface_pack import Packs, read

PACKS = Packs(
    "insightface",
    ("antelopev2", "buffalo_l"),
    reach=1.12,  # between unit vectors: a cosine of 0.37, from insightface's own examples; not measured here
    bring="antelopev2 or buffalo_l (a few hundred MB), https://github.com/deepinsight/insightface/tree/master/model_zoo, for non-commercial research only",
)


def load() -> Embedder:
    """The engine, with its models read.

    Raises:
        IdentityError: a package or a model pack is missing; the text says which, with its licence.
    """
    return read(PACKS)
