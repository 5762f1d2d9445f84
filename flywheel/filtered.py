"""Step 1.6 on disk: synthetic images that passed the identity check lie in filtered/ of their folder until somebody decides on them."""

from __future__ import annotations

from . import enrich, review
from .dataset import Dataset
from .project import FILTERED, StageName

STAGE: StageName = "synthetic"


def put_apart(scored: Dataset, passed: Dataset) -> list[str]:
    """Move the undecided images of `scored` that `passed` has into filtered/, and the others out of it. Answers what was done, in a sentence; images
    that are not synthetic stay where they are, and there is none.

    Decided images stay where their verdict has put them. The stage's metadata file is written anew with the places.

    Raises:
        StorageError: the disk refused. Every image is in one of both places.
    """
    if scored.stage_name != STAGE or not scored.images:
        return []
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
    apart = sum(place == FILTERED for place in places.values())
    left_out = 1 - len(passed.images) / len(scored.images)
    where = f"{scored.project.relative(scored.stage.folder)}/{FILTERED}"
    return [
        f"{apart} image{'' if apart == 1 else 's'} in {where} until you decide; {left_out:.0%} are left out (step 1.6 aims at 50 to 70 %)."
    ]
