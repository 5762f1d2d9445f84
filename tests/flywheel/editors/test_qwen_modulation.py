"""Tables in place of the layers that see only the timestep: the same images, the same gradients, a third fewer weights."""

import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.flywheel.editors.qwen import adapters, denoise, modulation  # noqa: E402
from comfyui_flenwheel.flywheel.errors import EditorError  # noqa: E402

from .qwen_tiny import SCHEDULER, linears  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LEVELS = (6, 16)  # steps, tokens
SHAPES = [[(1, 4, 4), (1, 4, 4)]]


def fresh(model, dtype=torch.float32):
    import diffusers

    return (
        diffusers.QwenImageTransformer2DModel.from_pretrained(model.folder / "transformer", torch_dtype=dtype).eval().requires_grad_(False)
    )


def times() -> torch.Tensor:
    return denoise.times(denoise.sigmas(SCHEDULER, *LEVELS))


def tables_of(transformer, *, folds=(), wanted=None, dtype=torch.float32):
    read = dict(transformer.named_parameters()).__getitem__
    zero = transformer.config.zero_cond_t
    grid = modulation.grid(times() if wanted is None else wanted, dtype, zero=zero)
    return modulation.build(read, transformer.config.num_layers, grid, dtype, folds=folds)


def predicted(transformer, time, *, batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden, words = torch.randn(batch, 32, 64, generator=generator), torch.randn(batch, 20, 64, generator=generator)
    return transformer(
        hidden_states=hidden.to(dtype),
        encoder_hidden_states=words.to(dtype),
        timestep=time.expand(batch),
        img_shapes=SHAPES * batch,
        return_dict=False,
    )[0]


@pytest.fixture(params=["tiny", "tiny_2511"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("batch", [1, 3])
def test_tables_predict_what_the_layers_do(model, batch):
    plain, tabled = fresh(model), fresh(model)
    modulation.install(tabled, tables_of(tabled))
    with torch.no_grad():
        for time in times():
            assert (predicted(plain, time, batch=batch) - predicted(tabled, time, batch=batch)).abs().max() < 1e-6


def test_in_bf16_the_rows_are_those_of_the_timesteps_bf16_can_tell_apart(model):
    plain, tabled = fresh(model, torch.bfloat16), fresh(model, torch.bfloat16)
    modulation.install(tabled, tables_of(tabled, dtype=torch.bfloat16))
    with torch.no_grad():
        for time in times():
            before, after = (predicted(one, time, dtype=torch.bfloat16).float() for one in (plain, tabled))
            assert (before - after).abs().max() <= 0.02 * before.abs().max()  # two roundings of 8 bits
    tabled.to(torch.float16)
    assert tabled.time_text_embed.get_buffer("times").dtype == torch.float32  # keys follow to no other type


def test_a_third_of_the_weights_is_gone(tiny):
    transformer = fresh(tiny)
    before = sum(weight.numel() for weight in transformer.parameters())
    modulated = sum(weight.numel() for name, weight in transformer.named_parameters() if modulation.belongs(name.rpartition(".")[0]))
    modulation.install(transformer, tables_of(transformer))
    assert sum(weight.numel() for weight in transformer.parameters()) == before - modulated
    assert modulated > before / 4


def test_gradients_of_loras_are_the_same_with_checkpointing_and_accumulation(model):
    from peft import LoraConfig

    gradients = []
    for tabled in (False, True):
        transformer = fresh(model)
        if tabled:
            modulation.install(transformer, tables_of(transformer))
        torch.manual_seed(2)
        transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_out.0", "net.2"], init_lora_weights="gaussian"))
        generator = torch.Generator().manual_seed(3)
        for name, weight in sorted(transformer.named_parameters()):
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.1
        transformer.enable_gradient_checkpointing()
        transformer.train()
        # two forward passes before one backward: a table that remembered "the current row" would recompute with the wrong one
        loss = sum((predicted(transformer, time) ** 2).mean() for time in (times()[1], times()[4]))
        loss.backward()
        gradients.append(
            torch.cat([weight.grad.flatten() for name, weight in sorted(transformer.named_parameters()) if weight.grad is not None])
        )
    plain, ours = gradients
    assert plain.norm() > 0
    assert (plain - ours).norm() / plain.norm() < 1e-6


EVERYTHING = ("img_mod.1", "txt_mod.1", "norm_out.linear")


@pytest.mark.parametrize("ends", [EVERYTHING, (*EVERYTHING, "timestep_embedder.linear_1", "timestep_embedder.linear_2")])
def test_adapters_on_these_layers_are_folded_into_the_rows(model, ends):
    generator = torch.Generator().manual_seed(4)
    plain, tabled = fresh(model), fresh(model)
    pairs = {
        name: (torch.randn(4, into, generator=generator) * 0.1, torch.randn(out, 4, generator=generator) * 0.1)
        for name, (out, into) in linears(plain).items()
        if name.endswith(ends)
    }
    bare = tables_of(tabled)
    untouched = fresh(model)
    adapters.inject(plain, {name: (down, up * 0.7) for name, (down, up) in pairs.items()}, "reference")
    folds = ((pairs, 0.7),)
    rows = modulation.fold(bare, folds)
    assert (rows is None) == (len(ends) > len(EVERYTHING))  # what they see has changed: only the weights can tell
    modulation.install(tabled, rows or tables_of(tabled, folds=folds))
    with torch.no_grad():
        for time in times():
            expected = predicted(plain, time)
            assert (expected - predicted(tabled, time)).abs().max() < 2e-6
        assert (expected - predicted(untouched, time)).abs().max() > 1e-3


def test_another_schedule_is_refused_not_guessed(model):
    transformer = fresh(model)
    modulation.install(transformer, tables_of(transformer))
    with pytest.raises(EditorError, match=r"no modulation row for the timestep 0\.123"):
        predicted(transformer, torch.tensor([0.123]))


def test_rows_of_several_schedules_come_from_one_pass_and_are_picked(model):
    transformer = fresh(model)
    other = denoise.times(denoise.sigmas(SCHEDULER, 4, 1024))
    together = tables_of(transformer, wanted=torch.cat([times(), other]))
    alone = tables_of(transformer, wanted=other)
    picked = together.pick(alone.times)
    assert torch.equal(picked.times, alone.times)
    assert (picked.image - alone.image).abs().max() < 1e-6 and (picked.out - alone.out).abs().max() < 1e-6
    assert picked.bytes == alone.bytes


def test_a_model_that_is_conditioned_on_more_is_refused(tiny):
    transformer = fresh(tiny)
    tables = tables_of(transformer)
    transformer.register_to_config(use_additional_t_cond=True)
    with pytest.raises(EditorError, match="more than the timestep"):
        modulation.install(transformer, tables)
