"""LoRA stacks through PEFT against deltas added by hand, on full, 8-bit and 4-bit bases."""

import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.flywheel import lora  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import adapters, quantised  # noqa: E402
from comfyui_flenwheel.flywheel.errors import EditorError, LoraError  # noqa: E402

from ..lora_files import STYLES, save, tensors  # noqa: E402
from .qwen_tiny import linears, lora_file  # noqa: E402
from .test_qwen_modulation import fresh, predicted  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TIME = torch.tensor([0.5])


def blocks(transformer, *ends) -> dict[str, tuple[int, int]]:
    """The layers of attention and MLPs, or those with these names."""
    return {
        name: size
        for name, size in linears(transformer).items()
        if name.startswith("transformer_blocks") and "_mod" not in name and (not ends or name.endswith(ends))
    }


@pytest.fixture
def files(tiny, tmp_path):
    """Two LoRAs: one on all layers of the blocks, one of another rank on some."""
    transformer = tiny.pipeline.transformer
    return [
        lora_file(tmp_path / "first.safetensors", blocks(transformer), rank=4, seed=1),
        lora_file(tmp_path / "second one.v2.safetensors", blocks(transformer, "to_q", "net.2"), rank=6, seed=2),
    ]


def merged(transformer, *stack):
    """The stack added to the weights by hand."""
    sizes = linears(transformer)
    with torch.no_grad():
        for path, weight in stack:
            for name, (down, up) in adapters.read(lora.stacked(path, weight), sizes, "tiny").items():
                transformer.get_submodule(name).weight += weight * up @ down
    return transformer


def stacked(*stack):
    return [lora.stacked(path, weight) for path, weight in stack]


@torch.no_grad()
def output(transformer):
    return predicted(transformer, TIME)


def stacks_of(transformer):
    return adapters.Adapters(transformer, linears(transformer), "tiny")


def test_a_stack_is_the_sum_of_its_loras(tiny, files):
    transformer = fresh(tiny)
    stack = [(files[0], 0.8), (files[1], -0.5)]
    bare = output(transformer)
    stacks_of(transformer).use(stacked(*stack))
    expected = output(merged(fresh(tiny), *stack))
    assert (output(transformer) - expected).abs().max() < 2e-6
    assert (expected - bare).abs().max() > 1e-3


def test_combinations_are_switched_without_loading_again(tiny, files):
    transformer = fresh(tiny)
    bare, stacks = output(transformer), stacks_of(transformer)
    a, both = stacked((files[0], 1.0)), stacked((files[0], 1.0), (files[1], 1.0))
    results = []
    for combination in (a, both, [], a, a, both):
        stacks.use(combination)
        results.append(output(transformer))
    assert torch.equal(results[2], bare)  # the bare model again, bit for bit
    assert torch.equal(results[0], results[3]) and torch.equal(results[1], results[5])
    assert not torch.equal(results[0], results[1])
    assert stacks.switches == 5 and len(stacks._loaded) == 2


def test_weight_zero_is_the_bare_model_bit_for_bit(tiny, files):
    transformer = fresh(tiny)
    bare, stacks = output(transformer), stacks_of(transformer)
    stacks.use(stacked((files[0], 0.0)))
    assert torch.equal(output(transformer), bare) and not stacks._loaded
    stacks.use(stacked((files[0], 0.0), (files[1], 1.0)))
    assert (output(transformer) - output(merged(fresh(tiny), (files[1], 1.0)))).abs().max() < 2e-6


def test_old_combinations_make_room(tiny, files):
    transformer = fresh(tiny)
    stacks = stacks_of(transformer)
    for weight in range(1, adapters.KEPT + 3):
        stacks.use(stacked((files[0], float(weight))))
    assert len(stacks._loaded) == adapters.KEPT
    stacks.use(stacked((files[0], 1.0)))
    assert (output(transformer) - output(merged(fresh(tiny), (files[0], 1.0)))).abs().max() < 5e-6


def test_what_touches_modulation_is_handed_over(tiny, tmp_path):
    transformer = fresh(tiny)
    everything = linears(transformer)
    path, calls = lora_file(tmp_path / "all.safetensors", everything), []
    stacks = stacks_of(transformer)
    stacks.use(stacked((path, 0.5)), lambda: calls.append(len(stacks.folds)))
    ((pairs, weight),) = stacks.folds
    assert weight == 1.0 and {name for name in everything if name not in blocks(transformer) and name in pairs} == set(pairs)
    assert any(name.endswith("img_mod.1") for name in pairs) and not any(name.endswith("to_q") for name in pairs)
    stacks.use([], lambda: calls.append(len(stacks.folds)))
    stacks.use([], lambda: calls.append(-1))  # nothing to switch
    assert calls == [1, 0]


@pytest.mark.parametrize("style", ["alpha", "lokr"])
def test_alpha_and_factored_lokr_are_exact(tiny, tmp_path, style):
    from safetensors.torch import save_file

    name, path, generator = "transformer_blocks.0.attn.to_q", tmp_path / "one.safetensors", torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    if style == "alpha":
        down, up = random(4, 64), random(64, 4)
        save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}, path)
        delta = up @ down * 0.5
    else:
        w1, a, b = random(4, 4), random(16, 2), random(2, 16)
        flat = "lycoris_" + name.replace(".", "_")
        save_file({f"{flat}.lokr_w1": w1, f"{flat}.lokr_w2_a": a, f"{flat}.lokr_w2_b": b, f"{flat}.alpha": torch.tensor(2.0)}, path)
        delta = torch.kron(w1, a @ b)
    transformer, expected = fresh(tiny), fresh(tiny)
    with torch.no_grad():
        expected.get_submodule(name).weight += delta
    stacks_of(transformer).use(stacked((path, 1.0)))
    assert (output(transformer) - output(expected)).abs().max() < 2e-6


def test_every_style_of_lora_is_the_same_lora(tiny, tmp_path):
    """All fifteen spellings of one LoRA on all 28 layers of the blocks, timestep layers too: the same weights arrive, and they are used."""
    transformer, made = fresh(tiny), []
    bare, stacks, layers = output(transformer), stacks_of(transformer), linears(transformer)
    for number, style in enumerate(STYLES):
        (one,) = stacked((save(tmp_path / f"{number}.safetensors", tensors(style, size=0.1)), 1.0))
        made.append(adapters.read(one, layers, "tiny"))
        stacks.use([one])
        made[-1]["output"] = (output(transformer),)
    assert len(STYLES) == 15 and all(set(weights) == set(made[0]) and len(weights) == 29 for weights in made)
    for weights in made[1:]:
        for name, parts in weights.items():
            for ours, first in zip(parts, made[0][name], strict=True):
                assert torch.allclose(ours, first, rtol=1e-6, atol=1e-6), name
    assert (made[0]["output"][0] - bare).abs().max() > 1e-3


def test_what_cannot_be_stacked_is_named(tiny, tmp_path):
    from safetensors.torch import save_file

    name = "transformer_blocks.0.attn.to_q"
    for state, message in [
        ({"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(16, 16)}, "second factor is stored in full"),
        (
            {
                "hada_w1_a": torch.ones(64, 2),
                "hada_w1_b": torch.ones(2, 64),
                "hada_w2_a": torch.ones(64, 2),
                "hada_w2_b": torch.ones(2, 64),
            },
            "LoHa",
        ),
        ({"lora_A.weight": torch.ones(2, 64), "lora_B.weight": torch.ones(64, 2), "dora_scale": torch.ones(64, 1)}, "DoRA"),
    ]:
        path = tmp_path / f"{message[:4]}.safetensors"
        save_file({f"{name}.{role}": tensor for role, tensor in state.items()}, path)
        with pytest.raises(LoraError, match=f"{message}.*ComfyUI models editor"):
            stacks_of(fresh(tiny)).use(stacked((path, 1.0)))


def test_a_lora_for_another_model_changes_nothing(tiny, tmp_path):
    transformer = fresh(tiny)
    bare, stacks = output(transformer), stacks_of(transformer)
    path = lora_file(tmp_path / "flux.safetensors", {"single_transformer_blocks.0.attn.to_q": (64, 64)})
    with pytest.raises(LoraError, match=r"0 of 1 layers.*FLUX"):
        stacks.use(stacked((path, 1.0)))
    stacks.use([])
    assert torch.equal(output(transformer), bare)


# --- quantised bases --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "loss"), [("int8", 0.02), ("fp8", 0.08), ("nf4", 0.25)])
def test_a_lora_on_a_quantised_base_is_added_to_it_exactly(tiny, files, kind, loss):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    transformer, full = fresh(tiny), fresh(tiny)
    assert quantised.quantise(transformer, kind, skip=("img_in", "txt_in"), dtype=torch.float32, device="cpu") >= 28
    bare = output(transformer)
    assert 0 < (bare - output(full)).norm() / output(full).norm() < loss
    stacks = stacks_of(full)  # fitted to the layers as they were
    stacks.transformer = transformer
    stacks.use(stacked((files[0], 1.0)))
    changed = output(transformer)
    assert {layer.lora_A["c"].weight.dtype for layer in transformer.modules() if "c" in getattr(layer, "lora_A", {})} <= {torch.float32}
    # the LoRA must do to the quantised model what it does to its dequantised twin
    twin = fresh(tiny)
    with torch.no_grad():
        for name, layer in transformer.named_modules():
            base = getattr(layer, "base_layer", layer)
            if type(base).__name__ in ("ScaledLinear", "Linear4bit") and not name.endswith("base_layer"):
                twin.get_submodule(name).weight.copy_(base(torch.eye(base.in_features)).T - base.bias[:, None])
    assert (changed - output(merged(twin, (files[0], 1.0)))).abs().max() < 1e-5
    stacks.use([])
    assert torch.equal(output(transformer), bare)


def test_nothing_is_fused_into_a_quantised_base(tiny, files):
    transformer, full = fresh(tiny), fresh(tiny)
    weights = adapters.read(lora.stacked(files[0], 1.0), linears(full), "tiny")
    adapters.fuse(full, weights, 0.6)
    assert (output(full) - output(merged(fresh(tiny), (files[0], 0.6)))).abs().max() < 1e-6
    quantised.quantise(transformer, "int8", dtype=torch.float32, device="cpu")
    bare = output(transformer)
    with pytest.raises(EditorError, match=r"not fused into a int8 base.*before that is quantised"):
        adapters.fuse(transformer, weights)
    assert torch.equal(output(transformer), bare)
