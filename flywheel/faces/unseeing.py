"""Who measures the faces of a drawn character: nobody. Needs nothing that must be installed."""

from __future__ import annotations

from PIL import Image

from ..errors import IdentityError
from . import Face


class Unseeing:
    """An embedder that has no number for any face. It stands where the references name one, so that a drawn character takes the same way."""

    name = "none"
    reach = 1.0

    def fingerprint(self) -> str:
        return self.name

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder.

        Raises:
            IdentityError: always.
        """
        raise IdentityError(f"This character is drawn: the faces of a picture of {image.width} x {image.height} px are not measured.")
