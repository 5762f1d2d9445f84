"""Stands where ai-toolkit's run.py would (0.12.26): reads the same config, prints the lines it prints, writes the files it writes.

`FAKE` next to it: ok, slow, interrupted (ends without an error and without a LoRA), memory, skips, unread, garbage.
"""

import json
import os
import sqlite3
import struct
import sys
import time
from pathlib import Path

here = Path(__file__).parent
plan = (here / "FAKE").read_text().strip()
config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["config"]
process = config["process"][0]
(here / "SEEN").write_text(json.dumps({"config": config, "env": dict(os.environ), "argv": sys.argv}))
name, steps, every = config["name"], process["train"]["steps"], process["save"]["save_every"]
out = Path(process["training_folder"]) / name
out.mkdir(parents=True, exist_ok=True)


def lora(path, step):
    """One attention layer as ai-toolkit names it, without alpha; the step is in the metadata."""
    rank, layer = process["network"]["linear"], "diffusion_model.transformer_blocks.0.attn.to_q"
    data = struct.pack("<f", 0.5) * rank * 3072
    places = {"config": json.dumps(process), "home": "~/loras"}
    header = {"__metadata__": {"training_info": json.dumps({"step": step, "epoch": 0}), **places}}
    for number, (part, shape) in enumerate((("A", [rank, 3072]), ("B", [3072, rank]))):
        header[f"{layer}.lora_{part}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [number * len(data), (number + 1) * len(data)],
        }
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data + data)


def end(text, code):
    print(f"\n========================================\nResult:\n - {text}\n========================================", flush=True)
    sys.exit(code)


print("Running 1 job\n#############################################", flush=True)
print(
    f"# Running job: {name}\nLoading Qwen Image model\nQuantizing transformer\nDataset: {process['datasets'][0]['folder_path']}", flush=True
)
if plan == "unread":
    print("Error processing image: /data/target/p0001.png", flush=True)
saved = sorted(out.glob(f"{name}_*.safetensors"))
done = int(saved[-1].stem[-9:]) if saved else 0
if done:
    print(f"#### IMPORTANT RESUMING FROM {saved[-1]} ####\nFound step {done} in metadata, starting from there", flush=True)
(out / "samples").mkdir(parents=True, exist_ok=True)
if not done and not process["train"]["disable_sampling"]:
    print("Generating baseline samples before training", flush=True)
    (out / "samples" / "1795182000000__000000000_0.jpg").write_bytes(b"")
for step in range(done + 1, steps + 1):
    time.sleep(0.1 if plan == "slow" else 0.01)
    if plan == "memory" and step == 7:
        print("\nError running job: CUDA out of memory. Tried to allocate 1.50 GiB.", flush=True)
        end("1 failure", 1)
    if plan == "skips" and step == 7:
        print("\nOOM during training step, skipping batch 1/3", flush=True)
    if plan == "interrupted" and step == 7:
        end("Job stopped", 0)
    bar = f"{name}:  {100 * step // steps}%|###  | {step}/{steps} [00:10<00:10,  2.40s/it, lr: 1.0e-04 loss: {1 / step:.3e}]"
    print(f"\r{bar}", end="", file=sys.stderr, flush=True)
    store = sqlite3.connect(process["sqlite_db_path"], timeout=30.0, isolation_level=None)
    wanted = store.execute("SELECT save_now FROM Job WHERE id = ?", (os.environ["AITK_JOB_ID"],)).fetchone()[0] == 1
    if wanted:
        store.execute("UPDATE Job SET save_now = ? WHERE id = ?", ("0", os.environ["AITK_JOB_ID"]))
    store.close()
    if (step % every == 0 and step < steps) or wanted:
        path = out / f"{name}_{step:09}.safetensors"
        lora(path, step)
        (out / "samples" / f"1795182000000__{step:09}_0.jpg").write_bytes(b"")
        (out / "optimizer.pt").write_bytes(b"")
        print(f"\nSaving at step {step}\nSaved checkpoint to {path}\nSaved optimizer to {out / 'optimizer.pt'}", flush=True)
if plan == "garbage":
    (out / f"{name}.safetensors").write_bytes(b"half a file")
else:
    lora(out / f"{name}.safetensors", steps)
print(f"\nSaved checkpoint to {out / name}.safetensors", flush=True)
end("1 completed job", 0)
