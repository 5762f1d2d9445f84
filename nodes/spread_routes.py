"""The figures of a filter before it runs: GET /flenwheel/spread/{id}?threshold=0.6&keep=…&amount=50 answers from scores that a run
has left here. `id` comes with the result of Identity Filter ("flen_spread"); the newest are kept until ComfyUI ends.

{"words": "34 pass …", "kept_from": 0.6, "passed", "failed", "unmeasurable", "accepted", "review", "rejected",
 "bins": [{"from": 0.0, "kept": 0, "left_out": 3}, …]}
"""

from __future__ import annotations

from collections import OrderedDict

from aiohttp import web

from ..flywheel.errors import DatasetError, IdentityError
from ..flywheel.identity import Scores
from ..flywheel.images import value_key
from ..flywheel.sifting import Keep, Sieve, sift, spread
from .http import FRESH, NotFound, guarded

KEEP: dict[str, Keep] = {
    "all above the threshold": "all",
    "the best of them, a number": "best",
    "the best of them, a percentage": "percent",
}
KEPT = 64  # runs whose scores are held
BINS = 40

_scores: OrderedDict[str, Scores] = OrderedDict()


def offer(scores: Scores) -> str:
    """The id under which the figures of these scores can be asked for."""
    key = value_key([scores.reference, scores.dataset.project.folder_name, [image.key for image in scores.dataset.images]])
    _scores[key] = scores
    _scores.move_to_end(key)
    while len(_scores) > KEPT:
        _scores.popitem(last=False)
    return key


def sieve_of(threshold: float, keep: str, amount: int) -> Sieve:
    """What the widgets of Identity Filter say.

    Raises:
        IdentityError: more than 100 per cent.
    """
    sieve = Sieve(threshold, KEEP[keep], amount)
    if sieve.keep == "percent" and amount > 100:
        raise IdentityError(f"{amount} per cent cannot be kept. Set amount to 100 or less, or keep a number of images instead.")
    return sieve


def register(routes: web.RouteTableDef) -> None:
    routes.get("/flenwheel/spread/{id}")(guarded(_spread))


async def _spread(request: web.Request) -> web.Response:
    scores = _scores.get(request.match_info["id"])
    if scores is None:
        raise NotFound(
            "ComfyUI has been started again since these images were scored. Run the graph once, then the figures follow the widgets."
        )
    sifted = sift(scores, _sieve(request))
    bars = [{"from": bar.start, "kept": bar.kept, "left_out": bar.left_out} for bar in spread(scores, sifted.kept_from, BINS)]
    parts = {
        "passed": sifted.split.passed,
        "failed": sifted.split.failed,
        "unmeasurable": sifted.split.unmeasurable,
        "accepted": sifted.parts.accepted,
        "review": sifted.parts.review,
        "rejected": sifted.parts.rejected,
    }
    counts = {name: len(part.images) for name, part in parts.items()}
    return web.json_response({"words": sifted.words, "kept_from": sifted.kept_from, **counts, "bins": bars}, headers=FRESH)


def _sieve(request: web.Request) -> Sieve:
    asked = request.query
    try:
        threshold, amount = float(asked.get("threshold", "0.6")), int(asked.get("amount", "50"))
    except ValueError as error:
        raise DatasetError(f"threshold and amount are numbers ({error}).") from error
    keep = asked.get("keep", next(iter(KEEP)))
    if keep not in KEEP or not 0 <= threshold <= 1 or amount < 1:
        raise DatasetError(f"keep is one of {', '.join(map(repr, KEEP))}; threshold lies between 0 and 1; amount is at least 1.")
    return sieve_of(threshold, keep, amount)
