"""The worker: `python <pack>/training <job folder>`. Works from any directory, with no ComfyUI; also below `accelerate launch`."""

import argparse
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "comfyui_flenwheel"


def name_the_pack() -> None:
    """Outside ComfyUI the pack is called comfyui_flenwheel, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python training", description="Do one training job; everything it needs is in its folder.")
    parser.add_argument("job", type=Path, help="the job's folder: <project>/jobs/<id>")
    parser.add_argument("--hours", default="", help="begin only between these, such as 22:00-07:00")
    given = parser.parse_args()
    if NAME not in sys.modules:
        name_the_pack()
    crew: Any = importlib.import_module(f"{NAME}.training.engines.peft_qlora.crew")
    rank, world = crew.launched()
    if rank:
        crew.join(given.job.resolve(), rank, world)
        return 0
    worker: Any = importlib.import_module(f"{NAME}.training.run")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return worker.work(worker.Job(given.job.resolve()), given.hours)


if __name__ == "__main__":
    sys.exit(main())
