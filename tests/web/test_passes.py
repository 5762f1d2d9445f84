"""What the first pass is followed by, and what helps it: suggestions, kept views, the strict pass, the silent repeat. By keyboard."""

from dataclasses import dataclass

import pytest
from comfyui_flenwheel.flywheel import identity, ledger, references
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.faces import Face
from comfyui_flenwheel.flywheel.images import content_key, write_json

from .pages import all_saved, await_review, portrait, press, shown, text

pytestmark = [pytest.mark.browser, pytest.mark.comfy]


@dataclass
class Numbered:
    """A face engine that knows the numbers in `pages.portrait`: every fourth is alike, in doubt, somebody else, without a face."""

    name: str = "numbered"
    reach: float = 0.55

    def fingerprint(self) -> str:
        return "numbered"

    def faces(self, image) -> tuple[Face, ...]:
        import numpy as np

        number = image.getpixel((0, 0))[0]
        if number != 200 and number % 4 == 3:
            return ()
        away = 0.0 if number == 200 else (0.1, 0.52, 0.9)[number % 4]
        return (Face((60, 52, 134, 152), "hog", 1.0, np.array([away, 1.0], np.float32), 0.0, 0.0, 100.0, 120.0, 0.0, 0.0),)


@pytest.fixture
def scored(reviewed):
    """Twelve candidates with scores."""
    photo = reviewed.project.stage("source").folder / "source_001.png"
    record = ImageRecord(content_key(photo), reviewed.project.relative(photo), 192, 240, "photo of ohwx_char person")
    described = {"key": record.key, "filename": record.name, "angle": "front", "expression": "smiling"}
    write_json(reviewed.project.stage("source").metadata, {"images": [described]})
    chosen = references.choose_references(Dataset(reviewed.project, "source", (record,)), Numbered(), ["source_*"])
    identity.score(reviewed.candidates, chosen, Numbered())
    return reviewed


def test_suggestions_only_touch_what_is_undecided_and_are_told_apart(scored, new_tab):
    tab = shown(new_tab(scored.address))
    label = tab.get_attribute(".card >> nth=0", "aria-label")
    assert (
        "suggested: Good" in label and tab.locator(".card .tag.hint").count() == 9 and tab.locator(".card .mark:not(:empty)").count() == 0
    )
    press(tab, ["3"])  # a person disagrees with the first
    while tab.get_attribute("#filters [aria-pressed=true]", "data-filter") != "suggested":
        press(tab, ["f"])
        tab.wait_for_timeout(50)
    assert tab.locator(".card").count() == 8
    press(tab, ["q"])
    tab.wait_for_selector("dialog.bulk .change")
    assert sorted(tab.locator("dialog.bulk .change").all_text_contents()) == [
        "2Undecided→Good",
        "3Undecided→Needs correction",
        "3Undecided→Reject",
    ]
    press(tab, ["Enter"])
    all_saved(tab)
    assert scored.labels()[:8] == ["reject", "needs_correction", "reject", None, "good", "needs_correction", "reject", None]
    assert "on 8 images" in text(tab, "#undo-what")
    press(tab, ["u"])
    all_saved(tab)
    assert scored.labels() == ["reject"] + [None] * 11


def test_a_rule_of_a_script_is_told_apart_from_a_person(scored, new_tab):
    ledger.record(scored.project, [ledger.LabelEvent(scored.keys[0], "good", origin="policy", reviewer="likeness")])
    tab = shown(new_tab(scored.address))
    press(tab, ["f"])
    first = tab.locator(".card >> nth=0")
    assert "Good by a rule" in first.get_attribute("aria-label") and first.locator(".mark").get_attribute("title") == "by a rule"
    border = "getComputedStyle(document.querySelector('.card .mark')).borderTopStyle"
    assert tab.evaluate(border) == "dashed", "seen at every size of the cards"
    press(tab, ["Home", "Enter"])
    assert text(tab, "#viewer-label") == "Good by a rule"
    press(tab, ["Escape"])
    press(tab, ["1"])  # a person who agrees has decided
    all_saved(tab)
    assert first.get_attribute("aria-label").startswith("Good,") and text(tab, "#undo-what") == "Undo “Good”"
    assert ledger.labels(scored.project)[scored.keys[0]].origin == "person"
    press(tab, ["u"])
    all_saved(tab)
    assert "Good by a rule" in first.get_attribute("aria-label") and tab.evaluate(border) == "dashed"


def test_the_score_opens_its_evidence(scored, new_tab):
    tab = shown(new_tab(scored.address))
    press(tab, ["Enter"])
    tab.wait_for_selector("#evidence .crops figure >> nth=1")
    assert "match" in text(tab, "#viewer-similarity") and tab.locator("#evidence .scale b").count() == 1
    assert "source_001.png" in text(tab, "#evidence .lineage")
    press(tab, ["s"])  # the divider lies on the registered faces
    tab.wait_for_selector("#divider")


def test_a_view_is_kept_found_again_from_elsewhere_and_forgotten(scored, new_tab):
    tab = shown(new_tab(scored.address))
    press(tab, ["f", "/"])
    tab.keyboard.type("forest")
    tab.wait_for_function("document.querySelectorAll('.card').length === 6")
    tab.focus("#finder .views input")
    tab.keyboard.type("forests")
    press(tab, ["Enter"])
    tab.wait_for_selector("#finder .view .chip:text-is('forests')")
    other = shown(new_tab(scored.address, visitor="two"))
    press(other, ["/"])
    other.wait_for_selector("#finder .view .chip")
    other.focus("#finder .view .chip")
    press(other, ["Enter"])
    other.wait_for_function("document.querySelectorAll('.card').length === 6")
    assert all("forest" in prompt for prompt in other.locator(".card .prompt").all_text_contents())
    other.focus("#finder .forget")
    press(other, ["Enter"])
    other.wait_for_selector("#finder .view", state="detached")


def test_the_repeat_is_blind_silent_and_ends_in_a_figure(server, new_tab):
    reviewed = await_review(server, "repeat", 40)
    tab = shown(new_tab(reviewed.address))
    press(tab, "1" * 40)
    all_saved(tab)
    tab.goto(reviewed.address + "&pass=repeat")
    shown(tab)
    assert text(tab, "#decided") == "0 of 4 decided" and tab.evaluate("document.body.hasAttribute('data-blind')")
    assert not tab.is_visible(".caption .prompt") or "source_001" not in text(tab, ".card")
    press(tab, ["1", "1", "1", "3"])
    all_saved(tab)
    assert reviewed.labels() == ["good"] * 40  # it measures the reviewer and moves nothing
    press(tab, ["m"])
    tab.wait_for_selector("dialog.dialog h3")
    assert "the same verdict on 3 of 4 (75 %)" in text(tab, "dialog[open]")


def test_the_strict_pass_asks_wants_a_reason_and_ends_in_a_report(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "1" * 4 + "3" * 8)
    all_saved(tab)
    tab.goto(reviewed.address + "&pass=strict")
    shown(tab)
    assert text(tab, "#decided") == "0 of 4 decided"
    press(tab, ["Enter", "6", "1"])  # the anatomy is wrong, so it cannot be good
    assert "Is the anatomy right?" in text(tab, "#toast")
    press(tab, ["3"])  # the no is the reason
    press(tab, ["1", "1"])
    press(tab, ["2"])
    tab.wait_for_selector("#reason-bar.choosing")
    assert reviewed.project and text(tab, ".question span").startswith("needed")
    press(tab, ["2", "Enter"])
    all_saved(tab)
    strict = {key: passes["strict"] for key, passes in ledger.standing(reviewed.project).items() if "strict" in passes}
    assert sorted((event.label, event.reasons) for event in strict.values()) == [
        ("good", ()),
        ("good", ()),
        ("needs_correction", ("hands",)),
        ("reject", ("anatomy",)),
    ]
    assert any(event.answers.get("anatomy") is False for event in strict.values())
    press(tab, ["Escape", "m"])
    tab.wait_for_selector("dialog[open] .report")
    said = text(tab, "dialog[open]")
    assert "4 of 4 decided" in said and "hands" in said and "anatomy" in said and "2 so far" in said


def test_only_a_set_that_is_picked_from_says_how_many_to_pick(reviewed, new_tab):
    adopt(reviewed.project.stage("card"), [portrait(number) for number in range(3)], caption="")
    for address, advised in ((reviewed.address, True), (reviewed.address.replace("stage=enriched", "stage=card"), False)):
        tab = shown(new_tab(address))
        tab.click("#coverage")
        told = text(tab, "dialog .reports")
        assert "What the set covers" in told and ("Pick 10 to 20" in told) is advised
