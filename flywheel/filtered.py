"""Step 1.6 on disk: synthetic images that passed the identity check lie in filtered/ of their folder until somebody decides on them."""

from __future__ import annotations

from . import enrich, review
from .dataset import Dataset
from .project import FILTERED


def put_apart(scored: Dataset, passed: Dataset) -> int:
    """Move the undecided images of `scored` that `passed` has into filtered/, and the others out of it. Answers how many of `scored` lie there.

    Decided images stay where their verdict has put them. The stage's metadata file is written anew with the places.

    Raises:
        StorageError: the disk refused. Every image is in one of both places.
    """
    wanted = {image.key: "" for image in scored.images} | {image.key: FILTERED for image in passed.images}
    with review.taking_turns(scored.project):
        shelf = review.settle(scored.stage)
        places: dict[str, str] = {}
        for request_key, path in list(shelf.files.items()):
            key = shelf.lineages[request_key].image_key
            if key in wanted and shelf.folder_of(path) in ("", FILTERED):
                shelf.move(request_key, wanted[key])
                places[key] = wanted[key]
        review.remember_places(scored.stage, places)
        enrich.write_metadata(shelf)
    return sum(place == FILTERED for place in places.values())
