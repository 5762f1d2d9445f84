import json
import threading
import time
from dataclasses import replace

import pytest
from comfyui_flenwheel.flywheel import identity, identity_report, sifting
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.drawings import drawings
from comfyui_flenwheel.flywheel.errors import IdentityError, ScoreMismatch
from comfyui_flenwheel.flywheel.faces.unseeing import Unseeing
from comfyui_flenwheel.flywheel.identity import IdentityScore, Scores
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes, value_key, write_whole
from comfyui_flenwheel.flywheel.references import CHOSEN, calibrate, choose_references, no_references
from hypothesis import given
from hypothesis import strategies as st

from .faces.painted import Painted, broken, painted
from .faces.portraits import engine, portraits


class Cancelled(BaseException):
    """What ComfyUI raises out of a progress report."""


class Slow(Painted):
    def faces(self, image):
        time.sleep(0.05)
        return super().faces(image)


class Forbidden(Painted):
    def faces(self, image):
        raise AssertionError("this picture was measured before")


def states(scores: Scores) -> dict[str, str]:
    return {image.stem: scores.by_key[image.key].state for image in scores.dataset.images}


def by_name(scores: Scores, name: str) -> IdentityScore:
    return next(scores.by_key[image.key] for image in scores.dataset.images if image.stem == name)


@pytest.mark.parametrize(("distance", "expected"), [(0.0, 1.0), (0.55, 0.60), (0.495, 0.64), (1.375, 0.0), (9.0, 0.0)])
def test_similarity_keeps_the_documents_threshold(distance, expected):
    assert identity.similarity(distance) == pytest.approx(expected)


@given(st.floats(0, 3), st.floats(0, 3))
def test_similarity_ranks_as_distance_does(near, far):
    near, far = sorted((near, far))
    assert 1 >= identity.similarity(near) >= identity.similarity(far) >= 0


def test_bands():
    assert [identity.band(value) for value in (1.0, 0.64, 0.63, 0.55, 0.54, 0.0)] == [
        "match",
        "match",
        "review",
        "review",
        *["different"] * 2,
    ]


def test_a_score_without_measurement_has_no_number():
    for state, value in (("measured", None), ("no_face", 0.0)):
        with pytest.raises(ValueError, match="does not fit"):
            IdentityScore("k", "r", "e", state, value)


def test_the_largest_group_is_the_character_and_the_others_are_named(album):
    dataset = album(
        a=painted((10,), seed=1), b=painted((20,), seed=2), c=painted((30,), seed=3), x=painted((200,), seed=4), none=painted(seed=5)
    )
    references = choose_references(dataset, Painted())
    assert references.names == ("a.png", "b.png", "c.png")
    notes = "\n".join(references.notes)
    assert "x.png does not look like the other photos" in notes and "1.70" in notes and "none.png: no face was found" in notes


def test_five_references_are_chosen_that_differ_most_whatever_the_order(album, project):
    dataset = album(**{f"p{who:02}": painted((who,), seed=who) for who in range(0, 50, 5)})
    turned = Dataset(project, "source", dataset.images[::-1])
    chosen = choose_references(dataset, Painted())
    assert len(chosen.names) == CHOSEN and {"p00.png", "p45.png"} <= set(chosen.names)
    again = choose_references(turned, Painted())
    assert set(again.names) == set(chosen.names) and again.fingerprint == chosen.fingerprint


def test_two_equal_groups_are_not_guessed_at(album):
    dataset = album(a=painted((10,), seed=1), b=painted((12,), seed=2), x=painted((200,), seed=3), y=painted((202,), seed=4))
    with pytest.raises(IdentityError, match="not clear which") as caught:
        choose_references(dataset, Painted())
    assert caught.value.problems[:2] == ("a.png; b.png", "x.png; y.png") and "drawn" in caught.value.problems[2]


def test_named_references_are_checked_all_at_once(album):
    dataset = album(
        good=painted((10,), seed=1), none=painted(seed=2), two=painted((10,), (200,), seed=3), tiny=painted((10, 30), seed=4), bad=broken(5)
    )
    with pytest.raises(IdentityError) as caught:
        choose_references(dataset, Painted(), ["*.png"])
    assert [problem.split(":")[0] for problem in caught.value.problems[:3]] == ["none.png", "two.png", "tiny.png"]
    assert len(caught.value.problems) == 4
    with pytest.raises(IdentityError) as caught:
        choose_references(dataset, Painted(), ["good.png", "gone.png", "lost*"])
    assert len(caught.value.problems) == 2 and "gone.png" in str(caught.value)


def test_named_references_are_the_persons_choice_but_doubts_are_told(album):
    dataset = album(a=painted((10,), seed=1), b=painted((20, 200, 1), seed=2), x=painted((200,), seed=3), unused=painted((11,), seed=4))
    references = choose_references(dataset, Painted(), ["A.PNG", "b*", "x.png"])
    assert references.names == ("a.png", "b.png", "x.png")
    assert any(note.startswith("b.png is a weak reference") for note in references.notes)
    assert any(note.startswith("x.png looks like none of the other") for note in references.notes)


def test_no_face_anywhere_names_every_file(album):
    dataset = album(a=painted(seed=1), b=painted((10, 200, 1), seed=2))
    with pytest.raises(IdentityError) as caught:
        choose_references(dataset, Painted())
    assert [problem[:5] for problem in caught.value.problems[:2]] == ["a.png", "b.png"] and len(caught.value.problems) == 3
    assert caught.value.problems[2].startswith(
        "In 2 of 2 pictures no clear face was found. If the character is drawn or stylised after all"
    )


def test_every_state(album):
    dataset = album(
        ref=painted((10,), seed=1),
        same=painted((20,), seed=2),
        other=painted((110,), seed=3),
        none=painted(seed=4),
        profile=painted((12, 200, 1), seed=5),
        tiny=painted((12, 30), seed=6),
        blurred=painted((12, 200, 0, 1), seed=7),
        failing=broken(8),
    )
    scores = identity.score(dataset, choose_references(dataset, Painted(), ["ref.png"]), Painted())
    assert states(scores) == {
        "ref": "measured",
        "same": "measured",
        "other": "measured",
        "none": "no_face",
        "profile": "unverifiable",
        "tiny": "unverifiable",
        "blurred": "unverifiable",
        "failing": "unreadable",
    }
    assert by_name(scores, "same").distance == pytest.approx(0.1) and by_name(scores, "same").matched == "ref.png"
    assert by_name(scores, "other").similarity == pytest.approx(1 - 0.4 / 0.55)
    assert "turned away" in by_name(scores, "profile").note
    parts = sifting.split(scores)
    assert [image.stem for image in parts.passed.images] == ["ref", "same"]
    assert [image.stem for image in parts.failed.images] == ["other"]
    assert [image.stem for image in parts.unmeasurable.images] == ["none", "profile", "tiny", "blurred", "failing"]
    assert [image.stem for image in sifting.split(scores, 0.95).passed.images] == ["ref"]


def test_the_face_that_matches_decides_and_background_heads_do_not(album):
    dataset = album(
        ref=painted((10,), seed=1),
        beside=painted((110, 200), (12, 150), seed=2),
        behind=painted((110, 200), (12, 60), seed=3),
        hidden=painted((110, 200), (12, 150, 0, 1), seed=4),
    )
    scores = identity.score(dataset, choose_references(dataset, Painted(), ["ref.png"]), Painted())
    assert by_name(scores, "beside").distance == pytest.approx(0.02) and by_name(scores, "beside").faces == 2
    assert by_name(scores, "behind").distance == pytest.approx(1.0) and by_name(scores, "behind").faces == 1
    assert by_name(scores, "hidden").state == "unverifiable"


def test_too_few_references_and_a_missing_half_profile_are_told_with_the_reason(album):
    dataset = album(
        a=painted((10,), seed=1),
        b=painted((20, 200, 0, 0, 110), seed=2),
        half=painted((15, 200, 0, 0, 130), seed=3),
        c=painted((12,), seed=4),
    )
    frontal = choose_references(dataset, Painted(), ["a.png", "b.png"]).notes
    assert "there are only 2 references" in frontal[0] and "errors halve" in frontal[0]
    assert "b.png is turned furthest, by 9 degrees; half from 13" in frontal[1] and "held back" in frontal[1]
    assert choose_references(dataset, Painted(), ["a.png", "c.png", "half.png"]).notes == ()


def test_a_reference_does_not_vouch_for_itself(album):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    scores = identity.score(dataset, choose_references(dataset, Painted()), Painted())
    assert by_name(scores, "a").distance == pytest.approx(0.2) and by_name(scores, "a").matched == "b.png"
    alone = choose_references(dataset, Painted(), ["a.png"])
    assert by_name(identity.score(dataset, alone, Painted()), "a").similarity == 1.0
    assert any("only reference" in note for note in alone.notes)


def test_scoring_again_measures_nothing(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2), none=painted(seed=3))
    first = Painted()
    scores = identity.score(dataset, choose_references(dataset, first), first)
    assert first.looks == 3
    assert identity.score(dataset, choose_references(dataset, Forbidden()), Forbidden()) == scores
    other = Painted(version="2")
    identity.score(dataset, choose_references(dataset, other), other)
    assert other.looks == 3


def test_a_file_that_changed_gets_no_wrong_score(album):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2), gone=painted((10,), seed=3), cut=painted((10,), seed=4))
    whole = png_bytes(painted((10,), seed=4))
    dataset.path(dataset.images[1]).write_bytes(png_bytes(painted((200,), seed=9)))
    dataset.path(dataset.images[2]).unlink()
    dataset.path(dataset.images[3]).write_bytes(whole[: len(whole) // 2])
    references = choose_references(dataset, Painted(), ["a.png"])
    scores = identity.score(dataset, references, Painted())
    assert states(scores) == {"a": "measured", "b": "unreadable", "gone": "unreadable", "cut": "unreadable"}
    assert "b.png has changed on disk" in by_name(scores, "b").note
    dataset.path(dataset.images[3]).write_bytes(whole)  # mended: looked at again
    assert by_name(identity.score(dataset, references, Painted()), "cut").state == "measured"


def test_a_stop_in_the_middle_keeps_what_is_measured(album):
    dataset = album(**{f"p{who}": painted((who,), seed=who) for who in range(8)})
    references = choose_references(dataset, Painted(), ["p0.png"])
    threads, steps = set(), []

    def report(done: int, total: int) -> None:
        threads.add(threading.current_thread())
        steps.append((done, total))
        if done == 4:
            raise Cancelled

    embedder = Slow()
    with pytest.raises(Cancelled):
        identity.score(dataset, references, embedder, report=report)
    assert threads == {threading.main_thread()} and steps == [(1, 8), (2, 8), (3, 8), (4, 8)]
    looked, rest = embedder.looks, Painted()
    identity.score(dataset, references, rest)
    assert looked < 7 and looked + rest.looks == 7  # p0 was measured as a reference


def test_scores_of_two_kinds_never_meet(album):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    references = choose_references(dataset, Painted())
    with pytest.raises(ScoreMismatch):
        identity.score(dataset, references, Painted(version="2"))
    scores = identity.score(dataset, references, Painted())
    stranger = IdentityScore(dataset.images[0].key, "other references", scores.embedder, "measured", 0.9, 0.1)
    with pytest.raises(ScoreMismatch) as caught:
        Scores(dataset, scores.reference, scores.embedder, {**scores.by_key, stranger.image_key: stranger})
    assert caught.value.problems == ("a.png",)


def test_one_fresh_image_is_scored_from_memory_and_remembered(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    references = choose_references(dataset, Painted())
    image = painted((20,), seed=7)
    key = content_key(png_bytes(image))
    embedder = Painted()
    scored = identity.score_image(image, key, project, references, embedder)
    assert scored.state == "measured" and scored.distance == pytest.approx(0.1) and embedder.looks == 1
    assert identity.score_image(image, key, project, references, Forbidden()) == scored
    assert identity.comparable_scores(project, [key]) == {key: scored}


def test_the_review_sees_the_newest_scoring(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((40,), seed=2), c=painted((60,), seed=3))
    c = dataset.images[2].key
    near, far = (choose_references(dataset, Painted(), [name]) for name in ("b.png", "a.png"))
    for references, distance in ((near, 0.2), (far, 0.5), (near, 0.2)):
        identity.score(dataset, references, Painted())
        assert identity.comparable_scores(project, [c, "never scored"])[c].distance == pytest.approx(distance)
    assert identity.comparable_scores(project, []) == {}


def made_by(project, *prompts, stage="enriched", source=None):
    """Images of one face (20), each made by its prompt, from `source` if given."""
    shelf, images = Shelf(project.stage(stage)), []
    origin = {"key": source.key, "name": source.name} if source else None
    for prompt in prompts:
        image = painted((20,), seed=100 + len(prompt))
        path = shelf.add(value_key(prompt), "made", png_bytes(image), image, facts={"prompt": prompt, "source": origin})
        images.append(ImageRecord(content_key(path), project.relative(path), 512, 512, ""))
    return Dataset(project, stage, tuple(images))


def test_what_its_prompt_asks_to_be_drawn_gets_no_number_and_goes_to_the_review(album, project):
    photos = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    dataset = made_by(project, "in anime style", "smiling, a shirt with a cartoon on it")
    references = choose_references(photos, Painted())
    scores = identity.score(dataset, references, Painted())
    drawn, photo = (scores.by_key[image.key] for image in dataset.images)
    assert (drawn.state, drawn.similarity, drawn.distance, drawn.matched, drawn.faces) == ("unverifiable", None, None, None, 1)
    assert drawn.note.startswith("counts as drawn: its prompt asks for 'anime'") and "set drawn_styles of Identity Score" in drawn.note
    assert photo.state == "measured" and photo.note == ""
    assert identity.comparable_scores(project, [drawn.image_key])[drawn.image_key] == drawn, "the review tells it too"
    parts = sifting.parts(scores, threshold=0.99)
    assert [image.key for image in parts.review.images] == [drawn.image_key] and not parts.accepted.images, "never to the bin"
    path = dataset.path(dataset.images[0])
    assert identity.score_image(open_image(path).image, drawn.image_key, project, references, Painted()).state == "unverifiable"
    said = identity.score(dataset, references, Painted(), drawn_too=True).by_key[drawn.image_key]
    assert said.similarity is not None and said.note == "may be drawn: its prompt asks for 'anime'; scored because somebody said so"


def test_what_was_made_from_a_drawing_is_one_until_a_photograph_is_asked_for(album, project):
    photos = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    anime = made_by(project, "in anime style").images[0]
    sunny = made_by(project, "at the beach", source=anime).images[0]
    back = made_by(project, "make it look like a real photograph", source=sunny).images[0]
    after = made_by(project, "in the rain again", source=back).images[0]
    corrected = Shelf(project.stage("corrections"))
    mended = painted((20,), seed=77)
    path = corrected.add("c" * 16, "mended", png_bytes(mended), mended, facts={"prompt": "", "corrects": {"key": sunny.key, "name": "sun"}})
    by_hand = content_key(path)
    told = drawings(project)
    assert set(told) == {anime.key, sunny.key, by_hand}
    assert told[sunny.key] == f"it was made from {anime.name}, whose prompt asks for 'anime'" and told[by_hand].startswith(
        "it was made from"
    )
    later = replace(project, lap=2)
    assert drawings(later) == told, "also what another lap has made"
    with pytest.raises(IdentityError) as caught:
        choose_references(Dataset(project, "enriched", (anime, sunny, after)), Painted(), ["made*"])
    assert [problem.partition(" is drawn")[0] for problem in caught.value.problems] == [anime.name, sunny.name]
    chosen = choose_references(Dataset(project, "enriched", (*photos.images, sunny)), Painted())
    assert sunny.name not in chosen.names and any(f"{sunny.name} is drawn" in note for note in chosen.notes)


def test_a_picture_that_its_words_call_drawn_is_a_reference_only_if_somebody_says_so(album, project):
    photos = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    toon = made_by(project, "in anime style").images[0]
    dataset = Dataset(project, "enriched", (*photos.images, toon))
    with pytest.raises(IdentityError, match="if its words mean something else, set drawn_styles of Identity References"):
        choose_references(dataset, Painted(), [toon.name])
    assert toon.name not in choose_references(dataset, Painted()).names
    taken = choose_references(dataset, Painted(), [toon.name], drawn_too=True)
    assert taken.names == (toon.name,)
    assert any(note == f"{toon.name} may be drawn: its prompt asks for 'anime'; taken because somebody said so" for note in taken.notes)
    assert not any("may be drawn" in note for note in choose_references(photos, Painted(), drawn_too=True).notes)
    assert toon.name not in {**calibrate(dataset, taken, Painted()).own, **calibrate(dataset, taken, Painted()).others}
    said = calibrate(dataset, taken, Painted(), drawn_too=True)
    assert {"a.png", "b.png"} <= {*said.own, *said.others}


def test_a_drawn_character_is_never_measured(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2))
    references = no_references("the project says so")
    scores = identity.score(dataset, references, Unseeing())
    assert states(scores) == {"a": "unverifiable", "b": "unverifiable"}
    assert by_name(scores, "a").note == "counts as drawn: the project says so, and the number of a drawn face means nothing"
    assert len(sifting.parts(scores).review.images) == 2
    assert references.fingerprint != choose_references(dataset, Painted()).fingerprint
    report = identity_report.build(scores, references, 0.6)
    assert "because the character counts as drawn" in report.html and "nearest of" not in report.html
    image = dataset.images[0]
    assert identity.score_image(painted((10,)), image.key, project, references, Unseeing()).state == "unverifiable"


def test_numbers_from_before_the_character_was_said_to_be_drawn_are_shown_no_more(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2), c=painted((12,), seed=3))
    keys = [image.key for image in dataset.images]
    photos = choose_references(dataset, Painted())
    identity.score(dataset, photos, Painted())

    def shown(of):
        return [identity.comparable_scores(of, keys)[key].similarity for key in keys]

    assert None not in shown(project)
    unsaid, girl = replace(project, medium=None), replace(project, medium="drawn")
    assert shown(girl) == shown(unsaid) == [None] * 3
    note = "counts as drawn: nobody has said that the pictures are photographs (pictures_are in Project), and the number of a drawn face means nothing"
    assert {score.note for score in identity.comparable_scores(unsaid, keys).values()} == {note}
    note = "counts as drawn: the project says so, and the number of a drawn face means nothing"
    assert {score.note for score in identity.comparable_scores(girl, keys).values()} == {note}
    of_girl = replace(dataset, project=girl)
    assert set(states(identity.score(of_girl, photos, Forbidden())).values()) == {"unverifiable"}, "also against photographs of somebody"
    assert identity.score_image(painted((10,)), keys[0], girl, photos, Forbidden()).state == "unverifiable"
    identity.score(dataset, photos, Painted())
    assert None not in shown(project), "the last word counts"


def test_where_the_character_may_be_drawn_somebody_is_asked(album, project):
    clear = album(a=painted((10,), seed=1), b=painted((30,), seed=2), c=painted((11,), seed=3))
    assert not any("drawn" in note for note in choose_references(clear, Painted()).notes)
    half = album(d=painted(seed=4), e=painted((10, 200, 1), seed=5), f=painted((10,), seed=6), g=painted((12,), seed=7))
    assert any(
        note.startswith("In 2 of 4 pictures no clear face was found. If the character is drawn or stylised after all")
        for note in choose_references(half, Painted()).notes
    )
    called = replace(clear, images=tuple(replace(image, caption="an anime girl, smiling") for image in clear.images))
    assert any(note.startswith("A caption says 'an anime girl, smiling'") for note in choose_references(called, Painted()).notes)
    with pytest.raises(IdentityError, match="If the character is drawn or stylised after all, say so"):
        choose_references(album(h=painted(seed=8)), Painted())
    with pytest.raises(IdentityError, match="If the character is drawn or stylised after all, say so"):
        choose_references(album(i=painted((10,), seed=9), j=painted((200,), seed=10)), Painted())


def test_scores_shown_together_are_against_one_reference_set(album, project):
    dataset = album(a=painted((10,), seed=1), b=painted((40,), seed=2), c=painted((60,), seed=3), d=painted((70,), seed=4))
    keys = [image.key for image in dataset.images]
    old, new = (choose_references(dataset, Painted(), [name]) for name in ("a.png", "b.png"))

    def shown():
        return {key: score.distance for key, score in identity.comparable_scores(project, keys).items()}

    identity.score(dataset.keeping(set(keys[:3])), old, Painted())
    before = shown()
    identity.score(dataset.keeping({keys[3]}), new, Painted())
    assert shown() == before and keys[3] not in before, "scored against other references only, so there is nothing to show"
    assert identity.comparable_scores(project, keys[3:])[keys[3]].distance == pytest.approx(0.3)
    identity.score(dataset, new, Painted())
    assert shown() == {key: pytest.approx(distance) for key, distance in zip(keys, (0.3, 0.0, 0.2, 0.3), strict=True)}


def test_the_mean_of_all_references_is_another_set_with_its_own_reach(album):
    dataset = album(a=painted((10,), seed=1), b=painted((30,), seed=2), c=painted((50,), seed=3), x=painted((60,), seed=4))
    names = ["a.png", "b.png", "c.png"]
    best, mean = (choose_references(dataset, Painted(), names, rule=rule) for rule in identity.RULES)
    assert best.fingerprint != mean.fingerprint
    scored = by_name(identity.score(dataset, mean, Painted()), "x")
    assert scored.distance == pytest.approx(0.3) and scored.matched == "the mean of 3"
    assert scored.similarity == pytest.approx(1 - 0.4 * 0.3 / (0.55 * identity.MEAN_REACH))
    assert by_name(identity.score(dataset, best, Painted()), "x").distance == pytest.approx(0.1)
    own = by_name(identity.score(dataset, mean, Painted()), "a")
    assert own.distance == pytest.approx(0.3), "a reference is left out of the mean it is compared with"


def test_another_engine_has_another_reach(album):
    dataset = album(a=painted((10,), seed=1), x=painted((120,), seed=2))
    wide = Painted(reach=1.1)
    scores = identity.score(dataset, choose_references(dataset, wide, ["a.png"]), wide)
    assert by_name(scores, "x").similarity == pytest.approx(0.6), "0.60 is where two faces stop being one person, whoever measures"


def test_only_the_best_stay(album):
    dataset = album(**{f"p{who:02}": painted((who,), seed=who) for who in (0, 10, 20, 30, 40, 50, 60)}, none=painted(seed=99))
    scores = identity.score(dataset, choose_references(dataset, Painted(), ["p00.png"]), Painted())

    def kept(**how):
        return [image.stem for image in sifting.split(scores, sifting.floor(scores, **how)).passed.images]

    assert kept() == ["p00", "p10", "p20", "p30", "p40", "p50"]
    assert kept(best=2) == ["p00", "p10"] and kept(best=100) == kept()
    assert kept(percent=50) == ["p00", "p10", "p20", "p30"], "half of the seven that were measured"
    none = sifting.sift(scores, sifting.Sieve(0.6, "percent", 1))
    assert json.dumps([bar.left_out for bar in sifting.spread(scores, none.kept_from, 4)]) == "[0, 0, 3, 4]", "also where none stays"
    assert kept(percent=1) == [] and kept(threshold=0.9, best=4) == ["p00", "p10"], "the threshold stays a threshold"


def test_three_ways_to_go_on(album):
    dataset = album(
        ref=painted((10,), seed=1),
        sure=painted((20,), seed=2),
        near=painted((63,), seed=3),
        off=painted((110,), seed=4),
        none=painted(seed=5),
    )
    scores = identity.score(dataset, choose_references(dataset, Painted(), ["ref.png"]), Painted())

    def stems(**how):
        parts = sifting.parts(scores, **how)
        return [[image.stem for image in part.images] for part in (parts.accepted, parts.review, parts.rejected)]

    assert stems() == [["ref", "sure"], ["near", "none"], ["off"]]
    assert stems(kept_from=0.99) == [["ref"], ["none"], ["sure", "near", "off"]]


def test_calibration_tells_what_the_numbers_mean(album):
    dataset = album(
        a=painted((10,), seed=1), b=painted((25,), seed=2), c=painted((30,), seed=3), x=painted((200,), seed=4), none=painted(seed=5)
    )
    references = choose_references(dataset, Painted(), ["a.png", "b.png", "c.png"])
    meaning = calibrate(dataset, references, Painted())
    assert meaning.own == {name: pytest.approx(identity.similarity(d)) for name, d in (("a.png", 0.15), ("b.png", 0.05), ("c.png", 0.05))}
    assert meaning.others == {"x.png": 0.0}
    assert meaning.words[0] == "Your photos agree at 0.89 to 0.96 (a.png the least)."
    assert not any("Strangers" in line for line in meaning.words), "they were counted with dlib, not with this engine"
    alone = calibrate(dataset.keeping({dataset.images[0].key}), choose_references(dataset, Painted(), ["a.png"]), Painted())
    assert "single photo" in alone.words[0]


def test_images_of_any_node_are_compared_without_a_project():
    scores = identity.compare([painted((20,)), painted((110,), (15,)), painted()], [painted((10,)), painted((30,))], Painted())
    assert [score.state for score in scores] == ["measured", "measured", "no_face"]
    assert scores[0].distance == pytest.approx(0.1) and scores[1].distance == pytest.approx(0.05) and scores[1].faces == 2
    with pytest.raises(IdentityError) as caught:
        identity.compare([painted((20,))], [painted((10,)), painted(), painted((1,), (2,))], Painted())
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["reference 2", "reference 3"]


@pytest.mark.faces
def test_every_picture_of_the_man_scores_above_the_other_man(project):
    embedder, records = engine(), []
    for photo in portraits():
        path = project.stage("source").folder / photo.name
        write_whole(path, photo.read_bytes())
        records.append(ImageRecord(content_key(path), project.relative(path), 1, 1, ""))
    dataset = Dataset(project, "source", tuple(records))
    references = choose_references(dataset, embedder)
    scores = identity.score(dataset, references, embedder)
    values = {image.stem: scores.by_key[image.key].similarity for image in dataset.images}
    other = values.pop("biden")
    assert other is not None and other < 0.45
    assert len(values) == 6 and all(value is not None and value > 0.70 for value in values.values())
    assert [image.stem for image in sifting.split(scores).failed.images] == ["biden"]
    assert any(note.startswith("biden.jpg does not look like the other photos") for note in references.notes)
