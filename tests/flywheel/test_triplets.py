"""Corrections that were found good become triplets: by hand and by a better prompt, forward and back, aligned, split, in the document's JSON."""

import json

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import corrections, review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from comfyui_flenwheel.flywheel.layouts import export, import_dataset, plan
from comfyui_flenwheel.flywheel.registration import register
from comfyui_flenwheel.flywheel.triplets import Recipe, create_triplets, instruction_for, load_triplets
from PIL import Image

PROMPTS = ("Change background to forest, keep person identical", "Change lighting to sunset", "Make ohwx_char person wave")


def scene(seed, size=(384, 320)):
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (size[1] // cell, size[0] // cell, 3), dtype=np.uint8)).resize(size, 3), np.float32)
        for cell in (64, 16, 5)
    ]
    return Image.fromarray(np.clip(0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2], 0, 255).astype(np.uint8))


def edited(photo, seed, shift=0):
    result = photo.copy()
    result.paste(scene(seed + 500, (128, 96)), (60, 60))
    return result.transform(result.size, Image.Transform.AFFINE, (1, 0, -shift, 0, 1, 0), Image.Resampling.BICUBIC) if shift else result


@pytest.fixture
def lap(project):
    """Six photographs with one edit each; the first three need correction, the fourth is good."""
    photos, edits = [], []
    for number in range(6):
        path = project.stage("source").folder / f"source_{number + 1:03}.png"
        write_whole(path, png_bytes(scene(number)))
        photos.append(ImageRecord(content_key(path), project.relative(path), 384, 320, "photo of ohwx_char person"))
    shelf = Shelf(project.stage("enriched"))
    for number, photo in enumerate(photos):
        prompt = PROMPTS[number % 3]
        facts = {
            "origin": "edit",
            "prompt": prompt,
            "template": prompt,
            "seed": number,
            "attempt": 0,
            "caption": "photo of ohwx_char person",
        }
        facts |= {
            "source": {"name": photo.name, "key": photo.key},
            "parents": [photo.key],
            "depth": 1,
            "editor": {"editor": "stamp"},
            "notes": {},
        }
        key = f"{number:016x}"
        edit = edited(scene(number), number + 40)
        shelf.add(key, f"{photo.stem}-edit", png_bytes(edit), edit, facts=facts)
        edits.append(shelf.lineages[key].image_key)
    events = [review.LabelEvent(key, "needs_correction", ("identity", "hands"), "nose changed shape") for key in edits[:3]]
    review.record(project, [*events, review.LabelEvent(edits[3], "good")])
    return Dataset(project, "source", tuple(photos)), edits


def repaired(project, edit, image, prompt="a better prompt", seed=7):
    """What a repair run leaves behind: an image of the corrections stage, bound to what it corrects."""
    stage = project.stage("corrections")
    facts = corrections.corrected_facts(corrections.original_of(stage, edit), prompt=prompt, seed=seed, editor={"editor": "stamp"})
    shelf = Shelf(stage)
    shelf.add(f"{seed:016x}", "fixed", png_bytes(image), image, facts=facts)
    return shelf.lineages[f"{seed:016x}"].image_key


def dropped(project, edit, image):
    """What a person leaves behind who saved a file."""
    path = project.stage("corrections").folder / f"{edit}_fixed.png"
    write_whole(path, png_bytes(image))
    corrections.pick_up(project.stage("corrections"))
    return content_key(path)


@pytest.fixture
def corrected(lap, project):
    """A repair by prompt that is good, one by hand that slid by 4 px and is good, and one that waits."""
    _, edits = lap
    by_prompt = repaired(project, edits[0], edited(scene(0), 90))
    by_hand = dropped(project, edits[1], edited(scene(1), 91, shift=4))
    repaired(project, edits[2], edited(scene(2), 92), seed=8)
    review.record(project, [review.LabelEvent(key, "good") for key in (by_prompt, by_hand)])
    return by_prompt, by_hand


def rows(project):
    return json.loads((project.stage("qwen_training").folder / "triplets.json").read_text())


def test_good_corrections_become_triplets_in_the_documents_json(project, corrected):
    created = create_triplets(project)
    assert created.count == 2 and created.held_out is None
    first, second = rows(project)
    assert first["source_image"] == "data/source/v1/source_001.png"
    assert first["edit_prompt"].startswith("Change background to forest, keep person identical, ") and "hands" in first["edit_prompt"]
    assert first["target_image"].startswith("data/corrections/v1/") and (project.root / first["target_image"]).is_file()
    assert first["issue"] == "identity, hands; nose changed shape"
    assert first["improvement"] == "Made again with the prompt: a better prompt" and second["improvement"] == "Corrected by hand"
    assert first["lineage"]["edit_key"] == corrected[0] and first["lineage"]["aligned"] is None
    text = created.text()
    assert "8 more reach the minimum of 10" in text and "1 corrections wait for a verdict" in text and "Nothing is held out" in text
    assert (project.stage("qwen_training").folder / "report.txt").read_text() == text + "\n"


def test_a_correction_that_slid_is_aligned_by_its_control_and_the_target_keeps_its_pixels(project, corrected):
    create_triplets(project)
    row = rows(project)[1]
    assert row["lineage"]["aligned"]["dx"] == pytest.approx(4, abs=0.3)
    source, target = (Image.open(project.root / row[name]).convert("RGB") for name in ("source_image", "target_image"))
    found = register(source, target)
    assert source.size == target.size and found is not None and found.shift < 0.3
    whole = Image.open(next(project.stage("corrections").folder.rglob(f"*{'_fixed'}.png"))).convert("RGB")
    left = whole.width - target.width
    assert np.array_equal(np.asarray(target), np.asarray(whole)[:, left:]), "cut, never resampled"


def test_the_doctor_can_only_warn_or_be_left_out(project, corrected):
    warned = create_triplets(project, Recipe(doctor="warn"))
    assert "slid by +4." in warned.text() and all(row["lineage"]["aligned"] is None for row in rows(project))
    assert "slid" not in create_triplets(project, Recipe(doctor="off")).text()


def test_the_way_back_is_only_taken_where_it_can_be_known(project, corrected):
    created = create_triplets(project, Recipe(direction="both", doctor="off"))
    by_direction = {(row["direction"], row["photo"]): row for row in rows(project)}
    assert set(by_direction) == {("forward", "source_001.png"), ("forward", "source_002.png"), ("reverse", "source_002.png")}
    back = by_direction["reverse", "source_002.png"]
    assert back["target_image"] == "data/source/v1/source_002.png" and "original lighting" in back["edit_prompt"]
    assert "1 edits have no reverse" in created.text()


def test_good_first_tries_can_be_added(project, corrected, lap):
    created = create_triplets(project, Recipe(positives=5))
    assert created.count == 3
    added = next(row for row in rows(project) if row["lineage"]["corrects"] is None)
    assert added["photo"] == "source_004.png" and added["issue"].startswith("none")


def test_the_token_stays_out_unless_wanted(project, lap):
    _, edits = lap
    review.record(project, [review.LabelEvent(repaired(project, edits[2], edited(scene(2), 93), seed=9), "good")])
    created = create_triplets(project)
    assert rows(project)[0]["edit_prompt"].startswith("Make the person wave, keep the person's face")
    assert "taken out of 1 instructions" in created.text()
    create_triplets(project, Recipe(with_token=True))
    assert rows(project)[0]["edit_prompt"].startswith("Make ohwx_char person wave")


def test_whole_photographs_are_held_out_and_stay_so(project, lap):
    _, edits = lap
    keys = [repaired(project, edit, edited(scene(number), 60 + number), seed=20 + number) for number, edit in enumerate(edits)]
    keys += [repaired(project, edit, edited(scene(number), 70 + number), seed=40 + number) for number, edit in enumerate(edits)]
    review.record(project, [review.LabelEvent(key, "good") for key in keys])
    created = create_triplets(project, Recipe(held_out=0.3))
    held = {row["photo"] for row in rows(project) if row["split"] == "held_out"}
    assert len(held) == 2 and created.held_out and len(created.held_out.pairs) == 4 and len(created.train.pairs) == 8
    assert not held & {row["photo"] for row in rows(project) if row["split"] == "train"}
    assert "The minimum of 10 is reached; about 100" in created.text()
    create_triplets(project, Recipe(held_out=0.3, direction="both"))
    assert held == {row["photo"] for row in rows(project) if row["split"] == "held_out"}


def test_they_can_be_loaded_again_and_exported(project, corrected, tmp_path):
    created = create_triplets(project)
    loaded = load_triplets(project)
    assert loaded == created.train
    exported = export(plan(loaded), tmp_path / "out", "musubi-tuner")
    back = import_dataset(exported.folder)
    assert [pair.stem for pair in back.pairs] == [pair.stem for pair in loaded.pairs]
    assert back.pairs[0].facts["lineage"]["edit_key"] == corrected[0]


def test_running_again_changes_no_byte(project, corrected):
    create_triplets(project)
    folder = project.stage("qwen_training").folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    create_triplets(project)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_good_corrections_it_says_what_is_missing(project, lap):
    with pytest.raises(DatasetError) as caught:
        create_triplets(project)
    assert "3 images are labelled needs_correction" in caught.value.problems[0]
    with pytest.raises(DatasetError, match="Run Create Correction Triplets"):
        load_triplets(project)


def test_a_changed_photograph_or_an_unknown_original_is_named(project, corrected, lap):
    photos, _ = lap
    write_whole(photos.path(photos.images[0]), png_bytes(scene(77)))
    text = create_triplets(project).text()
    assert "its photograph source_001.png is not there or has changed" in text and "1 triplets" in text


@pytest.mark.parametrize(
    ("prompt", "reasons", "told"),
    [
        ("Change background to forest.", (), "Change background to forest, keep the person's face and identity exactly the same"),
        ("Change background to forest, keep her the same", (), "Change background to forest, keep her the same"),
        ("Make it night while preserving the face", ("hands",), "Make it night while preserving the face, keep the hands natural"),
    ],
)
def test_an_instruction_says_what_must_stay(prompt, reasons, told):
    assert instruction_for(prompt, reasons) == told


def test_the_template_is_editable_and_checked():
    assert instruction_for("Add a hat", (), template="{keep}: {instruction}", keep="same face") == "same face: Add a hat"
    with pytest.raises(PromptError, match="instruction"):
        instruction_for("Add a hat", (), template="{nonsense}")
