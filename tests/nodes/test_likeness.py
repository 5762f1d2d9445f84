"""Likeness of whole pictures, by ComfyUI's own CLIP vision and DINO classes at toy size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy


def test_the_same_picture_is_most_alike_and_nothing_is_called_identity(comfyui, photos, tmp_path):
    script = Path(__file__).parent / "vision_inside.py"
    command = [sys.executable, "-W", "ignore", script, comfyui, tmp_path, photos / "obama.jpg", photos / "biden.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"clip", "dino"}
    for answer in told.values():
        same, other = answer["likeness"]
        assert same == pytest.approx(1.0, abs=1e-4) and -1 <= other < same
        assert "not identity" in answer["text"] and "image 2" in answer["text"] and answer["size"][2] > 300
