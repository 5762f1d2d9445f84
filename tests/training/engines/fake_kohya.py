"""Stands where a training script of sd-scripts (0.10.1) or musubi-tuner (0.3.4) would: reads the same files, prints the lines they print, writes
the files they write.

`FAKE` (a file next to it) says what happens: ok, slow, stubborn (trains on when nobody listens), memory, nan, crash, nothing, old, disk, killed, garbage.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
plan = (HERE / "FAKE").read_text().strip()
config = {}
for line in Path(sys.argv[sys.argv.index("--config_file") + 1]).read_text(encoding="utf-8").splitlines():
    name, sign, value = line.partition(" = ")
    if sign and not line.startswith("#"):
        config[name] = json.loads(value)  # what we write is JSON as well
(HERE / "SEEN").write_text(json.dumps({"config": config, "env": dict(os.environ), "argv": sys.argv}))


def say(text, end="\n"):
    try:
        sys.stdout.buffer.write((text + end).encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        if plan != "stubborn":
            raise


def lora(path, value):
    """down and up of one attention layer, as both engines name it, in float32."""
    qwen = config["network_module"] == "networks.lora_qwen_image"
    rank, layer = config["network_dim"], "transformer_blocks_0_attn_to_q" if qwen else "double_blocks_0_img_attn_qkv"
    layer, out = f"lora_unet_{layer}", 3072 if qwen else 9216
    parts = {f"{layer}.lora_down.weight": [rank, 3072], f"{layer}.lora_up.weight": [out, rank], f"{layer}.alpha": []}
    places = {"ss_dataset_dirs": json.dumps({str(out): 1}), "ss_vae_name": "C:\\Users\\Zoë\\ae.safetensors"}  # as forks of it write them
    header, content = {"__metadata__": {"ss_output_name": config["output_name"], **places}}, b""
    for name, shape in parts.items():
        count = 1
        for size in shape:
            count *= size
        data = struct.pack("<f", value) * count
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + content)


out, name, total = Path(config["output_dir"]), config["output_name"], config["max_train_steps"]
if plan == "memory":
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB")
    sys.exit(1)
if plan == "old":
    say("ModuleNotFoundError: No module named 'library.flux_train_utils'")
    sys.exit(1)
if plan == "nothing":
    say("No data found. Please verify arguments (train_data_dir must be the parent of folders with images) / 画像がありません。")
    sys.exit(0)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])  # a data loader's worker
(HERE / "HELPER").write_text(str(helper.pid))
out.mkdir(parents=True, exist_ok=True)
say("running training / 学習開始")
say("  num train images * repeats / 学習画像の数×繰り返し回数: 120")
say(f"  total optimization steps / 学習ステップ数: {total}")


def sample(when):
    folder = out / "sample"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_{when}_00_20260216080729_42.png").write_bytes(b"")


if config.get("sample_at_first"):
    sample("e000000")
say(f"\rsteps:   0%|          | 0/{total} [00:00<?, ?it/s]", end="")
for step in range(1, total + 1):
    time.sleep(120 if plan == "stubborn" and step == 9 else 0.1 if plan in ("slow", "stubborn") else 0.01)
    if plan == "nan" and step == 7:
        say(f"\rsteps:  50%|█████     | {step}/{total} [00:10<00:10, 20.41s/it, avr_loss=nan]", end="")
        time.sleep(30)
    if plan == "disk" and step == 7:
        say("\nOSError: [Errno 28] No space left on device: '/job/out/x.safetensors'")
        sys.exit(1)
    if plan == "killed" and step == 7:
        helper.kill()
        os.kill(os.getpid(), signal.SIGKILL)
    say(f"\rsteps:  {100 * step // total}%|███▌      | {step}/{total} [00:10<00:10, 20.41s/it, avr_loss={2 / (step + 1):.3g}]", end="")
    if "sample_every_n_steps" in config and step % config["sample_every_n_steps"] == 0:
        sample(f"{step:06}")
        if "dit" in config:  # musubi-tuner draws them once more where an epoch ends at a checkpoint
            sample(f"e{step // config['sample_every_n_steps']:06}")
    if step % config["save_every_n_steps"] == 0:
        say(f"\nsaving checkpoint: {out}/{name}-step{step:08}.safetensors")
        lora(out / f"{name}-step{step:08}.safetensors", 0.5)
        state = out / f"{name}-step{step:08}-state"
        state.mkdir(exist_ok=True)
        for file in ("train_state.json", "optimizer.bin", "random_states_0.pkl"):
            (state / file).write_text("{}")
        say(f"saving state at step {step}")
helper.kill()
say(f"\nsaving checkpoint: {out}/{name}.safetensors")
if plan == "garbage":
    (out / f"{name}.safetensors").write_bytes(b"half a file")
else:
    lora(out / f"{name}.safetensors", 0.5)
say("model saved.")
