import json

import pytest
from comfyui_flenwheel.flywheel.errors import ProjectError
from comfyui_flenwheel.flywheel.project import is_folder_name, laps, load_project, open_project, project_roots, said_medium


def opened(home, name="Anna", token="ohwx_char", noun="person", lap=1, medium="photographs"):
    return open_project(home, name, instance_token=token, class_noun=noun, medium=medium, lap=lap)


def test_opening_twice_is_opening_once(tmp_path):
    first = opened(tmp_path)
    described = (first.root / "project.json").read_bytes()
    assert opened(tmp_path) == first
    assert (first.root / "project.json").read_bytes() == described


def test_a_name_with_spaces_and_umlauts_becomes_a_folder_and_stays_itself(tmp_path):
    project = opened(tmp_path, "  Zoë Müller / Ω ")
    assert project.folder_name == "Zoë_Müller_Ω"
    assert load_project(project.root).name == "Zoë Müller / Ω"


@pytest.mark.parametrize("name", ["", "   ", "///", "CON", "lpt1", "x" * 80])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ProjectError):
        opened(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("woman", "normal word"),
        ("Emma", "normal word"),
        ("two words", "one word"),
        ("ab", "one word"),
        ("9lives", "one word"),
        ("", "one word"),
    ],
)
def test_a_token_that_would_not_train_is_refused_with_the_reason(tmp_path, token, reason):
    with pytest.raises(ProjectError, match=reason):
        opened(tmp_path, token=token)


@pytest.mark.parametrize("token", ["ohwx_char", "ohwx", "zwx7", "sks_anna"])
def test_rare_tokens_are_fine(tmp_path, token):
    assert opened(tmp_path, token=token).instance_token == token


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ProjectError) as told:
        opened(tmp_path, name="", token="dog", noun=" ", lap=0)
    assert len(told.value.problems) == 4


def test_whether_the_pictures_are_photographs_must_be_said_once_and_can_be_changed(tmp_path):
    with pytest.raises(ProjectError, match="choose it under pictures_are"):
        opened(tmp_path, medium=None)
    assert not list(tmp_path.iterdir()) and said_medium(tmp_path, "Anna") is None
    assert opened(tmp_path).medium == "photographs"
    assert opened(tmp_path, medium=None).medium == "photographs", "as said before"
    assert opened(tmp_path, noun="anime girl", medium="drawn").medium == "drawn"
    assert said_medium(tmp_path, "Anna") == load_project(tmp_path / "Anna").medium == "drawn"
    with pytest.raises(ProjectError, match="'anime girl' means a drawn character: change one of the two"):
        opened(tmp_path, noun="anime girl")
    assert load_project(tmp_path / "Anna").medium == "drawn"


def test_a_project_from_before_it_was_asked_opens_and_says_nothing(tmp_path):
    project = opened(tmp_path)
    described = json.loads((project.root / "project.json").read_text())
    for medium in ("", "vinyl"):
        (project.root / "project.json").write_text(json.dumps({**described, "medium": medium}))
        assert load_project(project.root).medium is None
    with pytest.raises(ProjectError, match="nobody has said yet"):
        opened(tmp_path, medium=None)


def test_two_names_with_one_folder_are_refused(tmp_path):
    opened(tmp_path, "Anna B")
    with pytest.raises(ProjectError, match="already belongs to 'Anna B'"):
        opened(tmp_path, "Anna_B")


def test_names_that_differ_in_case_are_refused(tmp_path):
    opened(tmp_path, "Anna")
    with pytest.raises(ProjectError, match="Windows and macOS"):
        opened(tmp_path, "ANNA")


def test_a_damaged_project_file_is_named_and_left_alone(tmp_path):
    project = opened(tmp_path)
    (project.root / "project.json").write_text("{half")
    with pytest.raises(ProjectError, match=r"Anna/project\.json"):
        opened(tmp_path)
    assert (project.root / "project.json").read_text() == "{half"


def test_paths_that_leave_the_project_are_refused(tmp_path):
    project = opened(tmp_path)
    for path in ("../Ben/x.png", "/etc/passwd", "data/../../x"):
        with pytest.raises(ProjectError, match="leads out"):
            project.path(path)
    (project.root / "door").symlink_to(tmp_path)
    with pytest.raises(ProjectError, match="leads out"):
        project.path("door/x.png")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "..x..", "\0", "", ".hidden", "con"])
def test_what_is_no_folder_name(name):
    assert not is_folder_name(name)


def test_a_token_may_change_between_laps(tmp_path):
    opened(tmp_path)
    opened(tmp_path, token="ohwx_two", lap=2)
    described = json.loads((tmp_path / "Anna" / "project.json").read_text())
    assert described["instance_token"] == "ohwx_two" and described["created"]


def test_projects_and_laps_are_found(tmp_path):
    first, second = opened(tmp_path, "Ben"), opened(tmp_path, "Anna", lap=2)
    for project in (first, second):
        project.stage("enriched").folder.mkdir(parents=True)
    (tmp_path / "not a project").mkdir()
    assert [root.name for root in project_roots(tmp_path)] == ["Anna", "Ben"]
    assert laps(second.root, "enriched") == [2] and laps(first.root, "synthetic") == []
