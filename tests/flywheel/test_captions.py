import pytest
from comfyui_flenwheel.flywheel.captions import (
    IN_TEXT_FILE,
    Change,
    changed_in_text_files,
    check_template,
    fill,
    lint,
    listed,
    replaced,
    write_text_files,
    written_by_model,
)
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError

GOOD = {
    "a.png": "photo of ohwx_char person, neutral expression, front view",
    "b.png": "photo of ohwx_char person, smiling expression, half-left view",
    "c.png": "photo of ohwx_char person in a red coat, on a street",
    "d.png": "photo of ohwx_char person, full body view, sitting in a kitchen",
}


# --- templates


def test_a_template_knows_framing_and_setting_and_leaves_out_what_is_unknown(project):
    template = "photo of {token} {noun}, {framing}, {setting}, {angle} view"
    check_template(template)
    assert fill(template, project, setting="in a kitchen") == "photo of ohwx_char person, in a kitchen"
    assert fill(template, project, framing="bust", angle="front") == "photo of ohwx_char person, bust, front view"


# --- lint


def test_good_captions_have_no_finding(project):
    assert lint(GOOD, project) == ()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("photo of a person, front view", "the token 'ohwx_char' is missing"),
        ("photo of Ohwx_Char person", "the token 'ohwx_char' is missing"),
        ("photo of ohwx_chars person", "the token 'ohwx_char' is missing"),
        ("photo of ohwx_char person, ohwx_char in a park", "said more than once"),
        ("photo of ohwx_char, front view", "the class noun 'person' is missing"),
        ("photo of ohwx_char person, {angle} view", "placeholder or bracket"),
        ("photo of ohwx_char person, [forest|beach]", "placeholder or bracket"),
        ("photo of ohwx_char person, unknown view", "'unknown' was left over"),
        ("photo of ohwx_char person, TODO", "note to yourself"),
        ("photo of ohwx_char person, , front view", "empty part"),
        ("photo of ohwx_char person, front view,", "empty part"),
        ("photo of ohwx_char person, source_001.jpg", "file name"),
        ("The image shows ohwx_char person in a park", "as a language model does"),
        ("In this photo there is ohwx_char person", "as a language model does"),
    ],
)
def test_each_fault_is_named_with_its_image(project, caption, words):
    (finding,) = lint({**GOOD, "bad.png": caption}, project)
    assert words in finding.text and finding.names == ("bad.png",) and "bad.png" in str(finding)


@pytest.mark.parametrize(
    ("said", "leaks"),
    [
        ("with brown hair", ["brown hair"]),
        ("bearded, with blue eyes", ["bearded", "blue eyes"]),
        ("in a blue shirt", []),
        ("with wet hair", []),
    ],
)
def test_a_trait_that_every_caption_repeats_leaks_identity(project, said, leaks):
    captions = {name: f"{caption}, {said}" for name, caption in GOOD.items()}
    assert sorted(finding.text.split("'")[1] for finding in lint(captions, project)) == leaks
    assert all(f"in {len(GOOD)} of {len(GOOD)}" in finding.text for finding in lint(captions, project))
    some = {**captions, "c.png": GOOD["c.png"], "d.png": GOOD["d.png"]}
    assert lint(some, project) == (), "said of half the photos it is a change, not the person"


def test_two_captions_are_too_few_to_speak_of_a_leak(project):
    assert lint({name: f"{GOOD[name]}, brown hair" for name in ("a.png", "b.png")}, project) == ()


def test_captions_that_are_all_the_same_are_pointed_at(project):
    (finding,) = lint(dict.fromkeys(("a", "b", "c", "d"), GOOD["a.png"]), project)
    assert finding.text.startswith("4 captions are word for word the same")
    assert str(finding).endswith("(a, b, c and 1 more)")


# --- changing many


def test_find_and_replace_shows_before_it_does_anything():
    captions = {"a": "a man and a woman, Man", "b": "nobody"}
    assert replaced(captions, "man", "boy") == (Change("a", "a man and a woman, Man", "a boy and a woman, boy"),)
    assert replaced(captions, "man", "boy", match_case=True)[0].after == "a boy and a woman, Man"
    assert replaced(captions, "man", "boy", whole_words=False)[0].after == "a boy and a woboy, boy"
    assert replaced(captions, ", Man", "", match_case=True)[0].after == "a man and a woman"
    assert replaced({"a": r"1 \ 2"}, "\\", r"\1")[0].after == r"1 \1 2", "plain text, no pattern"
    assert replaced(captions, "cat", "dog") == ()
    with pytest.raises(PromptError, match="nothing to find"):
        replaced(captions, "", "x")


def test_a_list_of_captions_names_each_image_once():
    changes = listed("# mine\n\nA: photo of ohwx_char person: a portrait \nb.png:  photo\n", GOOD)
    assert [(change.name, change.after) for change in changes] == [("a.png", "photo of ohwx_char person: a portrait"), ("b.png", "photo")]
    with pytest.raises(DatasetError) as caught:
        listed("a: x\na.png: y\nz.png: x\nc.png\nd.png: ", GOOD)
    assert [problem.split(" ")[1].rstrip(":") for problem in caught.value.problems] == ["2", "3", "4", "5"]


def test_what_a_model_says_becomes_one_line_around_the_token(project):
    template = "photo of {token} {noun}, {text}"
    assert written_by_model(' "In a park,\n at night." ', template, project) == "photo of ohwx_char person, In a park, at night"
    for wrong in ("photo of {token}", "{text} {angle}", "{text", "{text} {}"):
        with pytest.raises(PromptError):
            written_by_model("a park", wrong, project)
    with pytest.raises(PromptError, match="answered with nothing"):
        written_by_model("\n", template, project)


# --- .txt


def entry(caption: str, agreed: str | None = None) -> dict[str, str]:
    return {"caption": caption, IN_TEXT_FILE: caption if agreed is None else agreed}


@pytest.mark.parametrize(
    ("text", "described", "taken"),
    [
        (None, entry("same"), {}),
        ("same", entry("same"), {}),
        ("same\r\n", entry("same"), {}),
        ("\ufeffmine", entry("old"), {"a.png": "mine"}),
        ("two\nlines", entry("old"), {"a.png": "two lines"}),
        ("old", entry("new", agreed="old"), {}),
        ("both agree", entry("both agree", agreed="old"), {}),
        ("mine", {"caption": "from before there were texts"}, {"a.png": "mine"}),
    ],
)
def test_the_newer_of_the_two_counts(tmp_path, text, described, taken):
    if text is not None:
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert changed_in_text_files(tmp_path, {"a.png": described}) == taken


def test_captions_changed_in_both_places_are_nobodys_guess(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    entries = {"a.png": entry("theirs", agreed="old"), "b.png": entry("old"), "c.png": entry("old")}
    with pytest.raises(DatasetError) as caught:
        changed_in_text_files(tmp_path, entries)
    assert [problem[:5] for problem in caught.value.problems] == ["a.txt", "b.txt", "c.txt"]


def test_text_files_are_written_only_where_they_differ(tmp_path):
    write_text_files(tmp_path, {"a.png": "one", "b.png": "two"})
    before = (tmp_path / "a.txt").stat().st_mtime_ns
    (tmp_path / "b.txt").write_text("other")
    write_text_files(tmp_path, {"a.png": "one", "b.png": "two"})
    assert (tmp_path / "a.txt").stat().st_mtime_ns == before and (tmp_path / "b.txt").read_text() == "two\n"
