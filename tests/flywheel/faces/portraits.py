"""The real photographs and the real engine, or a skip that says what is missing."""

import os
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import Embedder, embedder


def portraits() -> list[Path]:
    """Photographs of one man and one of another, fetched at set-up; FLEN_PHOTOS says where they are."""
    folder = Path(os.environ.get("FLEN_PHOTOS", ""))
    if not os.environ.get("FLEN_PHOTOS") or not (folder / "biden.jpg").is_file():
        pytest.skip("FLEN_PHOTOS does not name the folder with the demo portraits")
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def engine() -> Embedder:
    try:
        return embedder()
    except IdentityError as error:
        pytest.skip(str(error))
