#!/usr/bin/env python3
"""Make the two examples of paired datasets, 12 pairs each: a logo on the shirt, a background removed.

python workflows/paired_examples.py FOLDER_WITH_PORTRAITS COMFYUI/input
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "comfyui_flenwheel"  # the pack's name outside ComfyUI
FOLDER = "flenwheel_examples"


def main(photos: str, into: str) -> None:
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec and spec.loader
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    examples = importlib.import_module(f"{NAME}.flywheel.pair_examples")
    find, told = examples.face_finder()
    print(told)  # noqa: T201 - a script tells what it does, and where it wrote
    for example in examples.EXAMPLES:
        print(examples.make_example(example, Path(photos), Path(into) / FOLDER, find=find))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
