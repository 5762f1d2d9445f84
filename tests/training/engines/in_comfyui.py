"""Whether ComfyUI itself puts a LoRA on a model: `in_comfyui.py <ComfyUI> <model> <lora>`, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path


def patched(comfyui, model, lora):
    done = subprocess.run([sys.executable, __file__, comfyui, model, lora], capture_output=True, text=True, cwd=comfyui, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("PATCHED")[2])


if __name__ == "__main__":
    comfyui, model, lora = sys.argv[1:]
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    from comfy import options

    options.enable_args_parsing()
    import torch
    from comfy import sd, utils

    base = sd.load_diffusion_model(model)
    patcher = sd.load_lora_for_models(base, None, utils.load_torch_file(lora, safe_load=True), 1.0, 0.0)[0]
    name = next(iter(patcher.patches))
    before = utils.get_attr(base.model, name).clone()
    patcher.patch_model(device_to=torch.device("cpu"))
    after = utils.get_attr(patcher.model, name)
    layers = sum(map(len, patcher.patches.values()))  # ComfyUI holds some of them in one weight
    print("PATCHED" + json.dumps({"keys": len(patcher.patches), "layers": layers, "changed": not torch.equal(before, after)}))
    assert Path(lora).is_file()
