"""AuraFace, a network like ArcFace that fal trained for commercial use: an optional engine, read through insightface. Off unless it is chosen.

Its page offers all files under Apache-2.0. The detector among them is SCRFD, which insightface offers for non-commercial research only; who needs
certainty asks both.
"""

from __future__ import annotations

from . import Embedder
from .insightface_pack import Packs, read

PACKS = Packs(
    "auraface",
    ("auraface",),
    # between unit vectors: a cosine of 0.45, at which insightface 2.1's person analysis takes two faces for one person. AuraFace's makers name
    # none; not measured here
    reach=1.05,
    bring="glintr100.onnx (261 MB) and scrfd_10g_bnkps.onnx (17 MB) from https://huggingface.co/fal/AuraFace-v1, into a folder auraface there;"
    " Apache-2.0 according to that page, which also holds insightface's detector (insightface: non-commercial research only)",
)


def load() -> Embedder:
    """The engine, with its models read.

    Raises:
        IdentityError: a package or a model file is missing; the text says which, with its licence.
    """
    return read(PACKS)
