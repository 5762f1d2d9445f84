"""What an edit prompt asks for, and the caption its result is trained with. Reads text; makes no image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Kind = Literal["background", "lighting", "style", "camera", "other"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One wish. `value` is what is wished for in the writer's own words, such as "forest"; for "other" it is the whole prompt."""

    kind: Kind
    value: str


_SUBJECT = r"(?:the |this |my )?(?:person|subject|character|man|woman|him|her|them|it|this|photo|picture|image|scene|portrait)"
_CHANGE = r"(?:change|replace|swap|switch|set|turn|make|adjust|transform)"
_LIGHTS = r"night(?:time)?|day(?:light|time)?|sun(?:set|rise|light)|dusk|dawn|golden hour|blue hour|moonlight|evening|morning"
_WISHES: tuple[tuple[Kind, str], ...] = (
    ("background", rf"\b{_CHANGE} (?:the |its )?(?:\w+ )?background (?:to|with|into|by|for|as|look like)\b:? ?(.+)"),
    ("background", r"\bbackground ?[:=] ?(.+)"),
    ("background", rf"\b(?:put|place|move) {_SUBJECT} (?:into|in front of|inside|in|onto|on|at|to)\b (.+)"),
    ("background", r"\b(blur)(?:red)? (?:the )?background\b"),
    ("background", r"\b(remove) (?:the )?background\b"),
    ("background", r"\b(?:with|against|on|in front of|add|use|give (?:it|them|him|her)) ([^,;]{1,60}?) background\b"),
    ("background", rf"^(?!{_CHANGE}\b)([\w-]+(?: [\w-]+){{0,3}}) background\b"),
    ("lighting", rf"\b{_CHANGE} (?:the |its )?(?:lighting|light|illumination) (?:to|with|into|by|for|as|look like)\b:? ?(.+)"),
    ("lighting", r"\blighting ?[:=] ?(.+)"),
    ("lighting", rf"\b(?:relight|re-light|light|illuminate)(?: {_SUBJECT})? (?:with|to|as|in|by|for|like)\b (.+)"),
    ("lighting", r"\brelight\b:? ?(.+)"),
    ("lighting", rf"\b(?:make|turn) {_SUBJECT} (?:into |at |in )?({_LIGHTS})\b"),
    ("lighting", r"\b(?:with|under|in|add|use|give (?:it|them|him|her)) ([^,;]{1,60}?) light(?:ing)?\b(?= ?[.,;]|$)"),
    ("lighting", rf"^(?!{_CHANGE}\b)([\w-]+(?: [\w-]+){{0,3}}) lighting\b"),
    ("style", r"\blooks? like (.+)"),
    ("style", r"\bin the styles? of (.+)"),
    ("style", r"\bstyle ?[:=] ?(.+)"),
    ("style", rf"\b{_CHANGE} (?:the |its )?style (?:to|into|as)\b (.+)"),
    ("style", r"\bin (?:an? )?([^,;]{1,60}?) style\b"),
    ("style", rf"\b(?:turn|convert|transform|make) {_SUBJECT} (?:in)?to\b (.+)"),
    ("style", rf"\b(?:render|restyle|redraw|draw|repaint|paint)(?: {_SUBJECT})? (?:as|like|in)\b (.+)"),
    ("camera", r"\bcamera (?:angle|view|position)? ?[:=] ?(.+)"),
    (
        "camera",
        r"\b(?:change|move|shift|set|tilt|turn|rotate|switch) (?:the )?(?:camera|view|viewpoint|angle|perspective)(?: angle| position)?"
        r" (?:to|from|into|towards?)?\b ?(.+)",
    ),
    ("camera", r"\b(?:view(?:ed)?|seen|shot|shown|photographed) from (.+)"),
    ("camera", r"\bfrom (an? (?:slightly )?(?:low|high)(?:er)? angle)\b"),
    ("camera", r"\b(zoom (?:in|out))\b"),
    ("camera", r"^<sks> ((?:front|back|left|right)[\w -]* view\b[\w -]*)"),  # how the 2511 angle LoRA is prompted
)
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _WISHES)

# where the wish ends and the care for the rest begins: ", keep person identical", "while preserving the face", "and the lighting to …"
_CARE = re.compile(
    r"[\s,;.]*(?:\b(?:while|but|and|then)\b[\s,]*)?"
    r"(?:\b(?:keep|maintain|preserv|retain|leav)(?:e|ing)?\b|\b(?:without|do not|don't|don’t|unchanged|same (?:person|face))\b"
    r"|\b(?:and|then)\b (?:the )?(?:change|make|relight|lighting|light|background|style|camera)\b).*$",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the|some)(?:\s+|$)", re.IGNORECASE)
_OWN_NOUN: dict[str, re.Pattern[str]] = {
    "background": re.compile(r"\s+(?:background|backdrop)$", re.IGNORECASE),
    "lighting": re.compile(r"\s+(?:lighting|light)$", re.IGNORECASE),
    "style": re.compile(r"\s+style$", re.IGNORECASE),
    "camera": re.compile(r"\s+(?:camera )?(?:angle|view|perspective)$", re.IGNORECASE),
}
_HAND_MADE = re.compile(
    r"\b(?:anime|manga|manhwa|webtoon|cartoon|chibi|toon|comic|drawn|drawing|sketch|illustrat(?:ed|ion)|painted|painting|stylised|stylized|mascot"
    r"|puppet|vtuber|animated|cel[- ]shad(?:ed|ing)|watercolou?r|sculpture|claymation|pixel art|3d|pixar|disney|ghibli)s?\b",
    re.IGNORECASE,
)
# words for the whole picture: "an anime drawing of …", or a part between commas such as "anime style"
_WHOLE = re.compile(
    r"^(?:an? |the )?((?:(?!(?:an?|the|this|that|my|his|her|their) )[\w-]+ ){0,3}[\w-]+) of\b|(?:^|,) ?((?:[\w-]+ ){1,4})style(?=[.,]|$)",
    re.IGNORECASE,
)
_INTO_PHOTOGRAPH = re.compile(r"\binto an? (?:[\w-]+ ){0,3}photo(?:graph)?\b", re.IGNORECASE)
_PHOTOGRAPH = re.compile(r"\b(?:photo(?:s|graph|graphs|graphic|realis\w+|real)?|realis\w+|real (?:person|life))\b", re.IGNORECASE)
_SHORTHAND = {"blur": "blurred", "remove": "plain"}


def is_hand_made(words: str) -> bool:
    """Whether words for a character or a style mean one that is drawn or modelled and no photograph."""
    return bool(_HAND_MADE.search(words))


@lru_cache(maxsize=10_000)
def drawing_asked_for(prompt: str) -> str:
    """The style a prompt asks for where that is no photograph's, such as "anime"; else empty. Only words for the whole picture count: a shirt with
    a cartoon on it is no drawing."""
    wish, text = parse(prompt), " ".join(prompt.split())
    wished = [wish.value] if wish.kind == "style" else []
    said = [(found[1] or found[2]).strip() for found in _WHOLE.finditer(text)]
    return next((style for style in (*wished, *said) if is_hand_made(style)), "")


@lru_cache(maxsize=10_000)
def photograph_asked_for(prompt: str) -> bool:
    """Whether an edit prompt asks for the style of a photograph."""
    wish = parse(prompt)
    return bool(_PHOTOGRAPH.search(wish.value) if wish.kind == "style" else _INTO_PHOTOGRAPH.search(prompt))


def parse(prompt: str) -> Instruction:
    """The wish in an edit prompt; of several wishes the first kind found in the order background, lighting, style, camera.

    Understands the process document's templates in any case, and common ways to say the same. Everything else is "other".
    """
    text = " ".join(prompt.split())
    for kind, pattern in _PATTERNS:
        if (found := pattern.search(text)) and (value := _value(kind, found[1])):
            return Instruction(kind, value)
    return Instruction("other", text)


def _value(kind: str, words: str) -> str:
    value = _CARE.sub("", words).strip(" .,;:!\"'“”‘’")
    value = _ARTICLE.sub("", value)
    value = _OWN_NOUN[kind].sub("", value)
    return _SHORTHAND.get(value.casefold(), value)


_MEDIUM = re.compile(r"^((?:an?\s+)?)((?:[\w-]+\s+){0,3}?)(photo(?:graph)?|picture|image|snapshot|portrait)(?=\s+of\b)", re.IGNORECASE)
_DRAWN = re.compile(r"(?:painting|watercolou?r|sketch|drawing|illustration|poster|print|render(?:ing)?|sculpture|cartoon|photo)$", re.I)
_DIRECTIONS: tuple[tuple[str, str], ...] = (
    (r"left", "from the left"),
    (r"right", "from the right"),
    (r"low|lower|below|down|underneath|worm'?s[- ]eye", "from below"),
    (r"high|higher|above|(?<!close[- ])up|upper|overhead|bird'?s[- ]eye", "from above"),
    (r"side|profile", "from the side"),
    (r"behind|back|rear", "from behind"),
    (r"front|head[- ]on|straight", "from the front"),
    (r"zoom in|close|closer|close[- ]up|near|nearer", "from close up"),
    (r"zoom out|far|farther|further|wide|wider|away", "from further away"),
)
_SLIGHT = re.compile(r"\b(?:slight|slightly|little|bit|lower|higher|closer|further|farther|wider|nearer)\b", re.IGNORECASE)
_SEGMENTS: dict[str, re.Pattern[str]] = {  # what an earlier edit or the caption template said about the same thing
    "background": re.compile(r"(?:[\w-]+ ){1,4}background", re.IGNORECASE),
    "lighting": re.compile(r"(?:[\w-]+ ){1,4}lighting", re.IGNORECASE),
    "camera": re.compile(r"seen (?:[\w-]+ ){0,16}[\w-]+", re.IGNORECASE),
}


_CARD_VIEW = re.compile(
    r"\bchange the view to (?:the |an? )?((?:front|half-left|half-right|profile-left|profile-right|side) view)\b(?: with an? (\w+ expression)\b)?",
    re.IGNORECASE,
)
_CARD_BODY = re.compile(r"\bshow the (full body [^,]+), ((?:front|side) view), ((?:[\w-]+ )+background)", re.IGNORECASE)
_SAID_OF_VIEW = re.compile(r"(?:front|half-left|half-right|profile(?:-left|-right)?|side) view|seen (?:[\w-]+ ){0,16}[\w-]+", re.IGNORECASE)
_GONE_ROUND = re.compile(
    r"seen .*from (?:the (?:left|right|side|front)|behind)\b"
)  # the camera: which side of the face is seen has changed
_SAID_OF_FACE = re.compile(r"[\w-]+ expression|smiling|angry|sad", re.IGNORECASE)


def _card_caption(caption: str, prompt: str) -> str:
    """The caption of an image that the model card's prompts ask for (data/card_23.json); empty for any other prompt.

    View and expression replace what the caption said of them. In a full-body picture nobody can tell the expression, so it is left out.
    """
    view, body = _CARD_VIEW.search(prompt), _CARD_BODY.search(prompt)
    if not (view or body):
        return ""
    first, *parts = [part.strip() for part in caption.rstrip(" .,").split(",")]
    said = [words for words in (view.groups()[::-1] if view else body.groups() if body else ()) if words]
    outdated = [_SAID_OF_VIEW, *([_SAID_OF_FACE] if body or len(said) == 2 else []), *([_SEGMENTS["background"]] if body else [])]
    return ", ".join([first, *said, *(part for part in parts if not any(segment.fullmatch(part) for segment in outdated))])


def edited_caption(caption: str, prompt: str) -> str:
    """The caption that is true of the edited image.

    The model card's prompts (view, expression, full body) replace what the caption says of these. Background, lighting and camera replace what the
    caption's later parts say of them, or are appended; a camera that goes round the person replaces the view as well. A style rewrites the leading
    "photo of". The caption's first part, where token and class noun stand, keeps all other words. "other" changes nothing.
    """
    if on_card := _card_caption(caption, prompt):
        return on_card
    wish = parse(prompt)
    if wish.kind == "other":
        return caption
    if wish.kind == "style":
        return _restyled(caption, wish.value)
    said = {
        "background": f"{wish.value} background",
        "lighting": f"{wish.value} lighting",
        "camera": seen_from(wish.value),
    }[wish.kind]
    first, *parts = [part.strip() for part in caption.rstrip(" .,").split(",")]
    outdated = _SAID_OF_VIEW if _GONE_ROUND.match(said) else _SEGMENTS[wish.kind]
    kept = [part for part in parts if not outdated.fullmatch(part)]
    return ", ".join(part for part in (first, *kept, said) if part)


def seen_from(value: str) -> str:
    """Words for a caption: "slightly left" becomes "seen slightly from the left"."""
    found = [words for pattern, words in _DIRECTIONS if re.search(rf"\b(?:{pattern})\b", value, re.IGNORECASE)]
    if not found:
        return f"{value} camera angle"
    return f"seen {'slightly ' if _SLIGHT.search(value) else ''}{' and '.join(found)}"


def _restyled(caption: str, style: str) -> str:
    drawn = _DRAWN.search(style)
    found = _MEDIUM.match(caption)
    if not found:
        return f"{style if drawn else f'{style} style picture'} of {caption}"
    article, adjectives, noun = found.groups()
    medium = style if drawn else f"{style} style"
    kept = "portrait" if noun.lower() == "portrait" else "" if drawn else "picture"
    leading = f"{adjectives}{medium} {kept}".rstrip()
    if article:
        leading = f"{'A' if article[0] == 'A' else 'a'}{'n' if leading[0].lower() in 'aeiou' else ''} {leading}"
    return leading + caption[found.end() :]
