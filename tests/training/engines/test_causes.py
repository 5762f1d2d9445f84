"""Why a trainer ended, from the lines that these programs really write."""

import pytest
from comfyui_flenwheel.training.engines import _causes


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB.", "memory"),
        (
            "RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "memory",
        ),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried to allocate 900 bytes",
            "memory",
        ),
        ("OSError: [Errno 28] No space left on device: '/job/out/x.safetensors'", "disk"),
        ("RuntimeError: Error(s) in loading state_dict for QwenImageTransformer2DModel: size mismatch for img_in.weight", "weights"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer", "weights"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url", "weights"),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",
            "missing",
        ),
        ("ValueError: No training items found in the dataset. Please ensure that the latent/Text Encoder cache has been created", "data"),
        ("ValueError: Missing control images for QwenImageEditPlusModel", "data"),
        ("voluptuous.error.MultipleInvalid: extra keys not allowed @ data['datasets'][0]['controls']", "data"),
        ("ModuleNotFoundError: No module named 'library.flux_train_utils'", "version"),
        ("flux_train_network.py: error: unrecognized arguments: --caption_extention .txt", "version"),
        ("ImportError: This example requires a source install from HuggingFace diffusers", "version"),
    ],
)
def test_every_line_has_a_cause_and_one_thing_to_do(line, code):
    error = _causes.failure(1, ["loading", "Traceback (most recent call last):", '  File "x.py", line 3, in f', line, " 50%|###  | 1/2"])
    assert error.code == code and error.advice and error.tail[-1] == line[:300] and len(error.tail) == 2


def test_what_is_not_understood_shows_its_last_lines():
    error = _causes.failure(3, [f"line {number}" for number in range(30)])
    assert error.code == "unknown" and error.tail == tuple(f"line {number}" for number in range(22, 30)) and "exit code 3" in error.cause
    assert _causes.failure(-9, ["steps"]).code == "killed"
