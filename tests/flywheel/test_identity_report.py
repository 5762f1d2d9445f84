import re
from dataclasses import replace

import pytest
from comfyui_flenwheel.flywheel import identity, identity_report
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.errors import ScoreMismatch
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from comfyui_flenwheel.flywheel.references import choose_references

from .faces.painted import Painted, painted


@pytest.fixture
def scored(project):
    """Two photos, and candidates of two prompts by two editors: (who, prompt, editor); 999 has no face."""
    references = []
    for name, who in (("source_001.png", 10), ("source_002.png", 30)):
        path = project.stage("source").folder / name
        write_whole(path, png_bytes(painted((who,), seed=who)))
        references.append(ImageRecord(content_key(path), project.relative(path), 512, 512, ""))
    shelf = Shelf(project.stage("enriched"))
    made = [
        (20, "smile", "qwen"),
        (40, "smile", "qwen"),
        (60, "hat & <scarf>", "qwen"),
        (160, "hat & <scarf>", "rehearsal"),
        (999, "smile", "qwen"),
    ]
    images, loras = [], {"rehearsal": "ohwx_v1 x 0.8"}
    for number, (who, prompt, editor) in enumerate(made):
        image = painted(*([(who,)] if who < 999 else []), seed=100 + number)
        facts = {
            "prompt": prompt,
            "template": prompt,
            "editor": {"editor": editor, "loras": loras.get(editor, "")},
            "source": {"name": "source_001.png"},
        }
        path = shelf.add(f"{number:016x}", "made", png_bytes(image), image, facts=facts)
        images.append(ImageRecord(content_key(path), project.relative(path), 512, 512, ""))
    chosen = choose_references(Dataset(project, "source", tuple(references)), Painted())
    return identity.score(Dataset(project, "enriched", tuple(images)), chosen, Painted()), chosen


def test_who_keeps_the_face_and_who_does_not(scored):
    report = identity_report.build(*scored, threshold=0.6)
    rows = {title: {row.name: row for row in rows} for title, rows in report.groups}
    assert list(rows) == ["By prompt", "By editor and LoRA", "By source photo"]
    assert rows["By prompt"]["smile"] == identity_report.Row("smile", 3, pytest.approx(identity.similarity(0.1)), 2, 1)
    assert set(rows["By editor and LoRA"]) == {"qwen", "rehearsal · loras ohwx_v1 x 0.8"}
    assert (
        rows["By editor and LoRA"]["rehearsal · loras ohwx_v1 x 0.8"].passed == 0 and rows["By source photo"]["source_001.png"].images == 5
    )
    assert [row.name for row in report.groups[0][1]] == ["hat & <scarf>", "smile"], "worst first"


def test_the_page_holds_everything_and_is_written_beside_the_images(scored):
    scores, chosen = scored
    report = identity_report.build(scores, chosen, threshold=0.6)
    path = identity_report.write(report, scores.dataset)
    page = path.read_text(encoding="utf-8")
    assert path == scores.dataset.stage.folder / "identity_report.html" and len(page) < 500_000
    assert "hat &amp; &lt;scarf&gt;" in page and "<scarf>" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is loaded from anywhere"
    assert page.count('<li><img alt="reference"') == 4, "each beside its reference"
    assert "0.93 (distance 0.10, match)" in page and "0.05 (distance 1.30, different)" in page, "never the one without the other"
    assert "Photographs, as the project says" in page, "what is assumed is said"
    assert "no face was found" in page and "source_001.png, source_002.png" in page
    assert Shelf(scores.dataset.stage).files.keys() == {f"{number:016x}" for number in range(5)}, "the page is no candidate"


def test_the_picture_shows_both_ends_and_the_breakdown(scored):
    full, few = (identity_report.build(*scored, 0.6, shown).picture for shown in (8, 1))
    assert full.size == few.size and 880 < full.width < 960 and full.height > 1200
    assert len(full.getcolors(1_000_000) or ()) != len(few.getcolors(1_000_000) or ()), "more faces are shown"


def test_files_that_are_gone_and_scores_without_a_number_do_no_harm(scored):
    scores, chosen = scored
    for image in scores.dataset.images[:2]:
        scores.dataset.path(image).unlink()
    identity_report.build(scores, chosen, 0.6)
    nothing = scores.dataset.keeping({scores.dataset.images[4].key})
    only = identity.Scores(nothing, scores.reference, scores.embedder, {nothing.images[0].key: scores.by_key[nothing.images[0].key]})
    assert "not measurable" in identity_report.build(only, chosen, 0.6).html


def test_other_references_are_refused(scored):
    scores, chosen = scored
    with pytest.raises(ScoreMismatch, match="other references"):
        identity_report.build(scores, replace(chosen, rule="mean"), 0.6)
