"""Stands where musubi-tuner's caching programs would (0.3.4): prints the lines they print and writes a cache file for every picture.

`FAKE` next to it: ok, or `no <what>`, where the last picture gets no latents or no text.
"""

import json
import sys
import time
from pathlib import Path

here = Path(__file__)
plan = (here.parent / "FAKE").read_text().strip()
texts = "text_encoder" in here.name
lines = Path(sys.argv[sys.argv.index("--dataset_config") + 1]).read_text(encoding="utf-8").splitlines()
told = {name: json.loads(value) for name, _, value in (line.partition(" = ") for line in lines) if value}
assert "--model_version" in sys.argv and (("--text_encoder" in sys.argv) if texts else ("--vae" in sys.argv))
pictures = sorted(Path(told["image_directory"]).glob("*.png"))
cache = Path(told["cache_directory"])
cache.mkdir(parents=True, exist_ok=True)
print(f"INFO:musubi_tuner.dataset.datasources:found {len(pictures)} images", flush=True)
for number, picture in enumerate(pictures[: -1 if plan == ("no text" if texts else "no latents") else None], 1):
    name = f"{picture.stem}_qie_te" if texts else f"{picture.stem}_0128x0096_qie"
    print(f"Saving cache for item {picture} at {cache / name}.safetensors", flush=True)
    print(f"\r{number}it [00:01,  1.24it/s]\r 50%|#####     | {number}/{len(pictures)}", end="", flush=True)
    (cache / f"{name}.safetensors").write_bytes(b"{}")
    time.sleep(0.2 if plan == "slow cache" else 0)
