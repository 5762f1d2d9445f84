"""Stands where one of diffusers' train_dreambooth_lora scripts would: takes the same options, prints the lines they print. `FAKE`: ok, slow, nothing, old."""

import json
import struct
import sys
import time
from pathlib import Path

here = Path(__file__).parent
plan = (here / "FAKE").read_text().strip()
told = dict(zip(sys.argv[1::1], sys.argv[2::1], strict=False))
(here / "SEEN").write_text(json.dumps({"argv": sys.argv}))
if plan == "old":
    print("ImportError: This example requires a source install from HuggingFace diffusers, but the version found is 0.32.1.")
    sys.exit(1)
out, steps, every, rank = (
    Path(told["--output_dir"]),
    int(told["--max_train_steps"]),
    int(told["--checkpointing_steps"]),
    int(told["--rank"]),
)
rows = [json.loads(line) for line in (Path(told["--dataset_name"]) / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
assert all((Path(told["--dataset_name"]) / name).is_file() for row in rows for key, name in row.items() if key.endswith("file_name"))
out.mkdir(parents=True, exist_ok=True)
done = max((int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*")), default=0) if "--resume_from_checkpoint" in told else 0
if done:
    print(f"Resuming from checkpoint checkpoint-{done}", flush=True)
for step in range(done + 1, steps + 1):
    time.sleep(0.1 if plan == "slow" else 0.01)
    bar = f"Steps:  {100 * step // steps}%|###  | {step}/{steps} [00:10<00:10,  1.20s/it, loss={1 / step:.3g}, lr=0.0001]"
    print(f"\r{bar}", end="", file=sys.stderr, flush=True)
    if step % every == 0:
        (out / f"checkpoint-{step}").mkdir()
        (out / f"checkpoint-{step}" / "random_states_0.pkl").write_bytes(b"")
        print(f"\n11/20/2026 13:00:00 - INFO - __main__ - Saved state to {out}/checkpoint-{step}", flush=True)
layer, data = "transformer.transformer_blocks.0.attn.to_q", struct.pack("<f", 0.5) * rank * 3072
header = {
    f"{layer}.lora_{part}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [number * len(data), (number + 1) * len(data)]}
    for number, (part, shape) in enumerate((("A", [rank, 3072]), ("B", [3072, rank])))
}
header["__metadata__"] = {"format": "pt", "output": str(out)}
head = json.dumps(header).encode()
if plan != "nothing":
    (out / "pytorch_lora_weights.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data + data)
