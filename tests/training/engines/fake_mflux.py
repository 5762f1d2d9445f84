"""Stands where mflux-train would (0.18): reads the same file, draws the bar it draws, writes a zip per checkpoint. `FAKE` beside it: ok, slow, stops."""

import io
import json
import struct
import sys
import time
import zipfile
from pathlib import Path

here = Path(__file__).resolve().parent
plan = (here / "FAKE").read_text().strip()
resume = Path(sys.argv[sys.argv.index("--resume") + 1]) if "--resume" in sys.argv else None
if resume:
    with zipfile.ZipFile(resume) as opened:
        config = json.loads(opened.read("config.json"))
else:
    config = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text(encoding="utf-8"))
images = sorted(Path(config["data"]).glob("*_out.png")) or sorted(Path(config["data"]).glob("*.png"))
assert images, "No image files found in data directory"
if "--dry-run" in sys.argv:
    print("✅ Training config validated.")
    sys.exit(0)
(here / "SEEN").write_text(json.dumps({"config": config, "argv": sys.argv}))
out = Path(config["checkpoint"]["output_path"]) / "checkpoints"
out.mkdir(parents=True, exist_ok=True)
rank = config["lora_layers"]["targets"][0]["rank"]
total = config["training_loop"]["num_epochs"] * -(-len(images) // config["training_loop"]["batch_size"])


def save(step):
    layer, data = "transformer.transformer_blocks.0.attn.to_q", struct.pack("<f", 0.5) * rank * 3072
    header = {"__metadata__": {"mflux_version": "0.24.0", "data": config["data"]}}
    for number, (part, shape) in enumerate((("A", [rank, 3072]), ("B", [3072, rank]))):
        header[f"{layer}.lora_{part}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [number * len(data), (number + 1) * len(data)],
        }
    head = json.dumps(header).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{step:07}_adapter.safetensors", struct.pack("<Q", len(head)) + head + data + data)
        archive.writestr("config.json", json.dumps(config))
    (out / f"{step:07}_checkpoint.zip").write_bytes(buffer.getvalue())


print("\r 50%|#####     | 1/2 [00:00<00:00]", end="", file=sys.stderr, flush=True)  # another bar
for step in range(int(resume.name[:7]) + 1 if resume else 1, total + 1):
    time.sleep(0.1 if plan == "slow" else 0.01)
    if plan == "stops" and step == 9:
        sys.exit(0)
    if step % config["checkpoint"]["save_frequency"] == 0:
        save(step)
    print(f"\r {100 * step // total}%|###  | {step}/{total} [00:10<00:10,  2.40s/it]", end="", file=sys.stderr, flush=True)
save(total)
