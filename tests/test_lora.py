"""Adapters: what they learn and leave alone, beside PEFT on the same folders, merged, exchanged and damaged."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import gpt_keras
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.folder import load_folder, save_folder
from gpt_keras.lora import Adapter, AdapterSwitch, add_lora, hold_frozen, is_adapter, projections_of

from .conftest import build, random_ids

SMALL = {"vocabulary_size": 128, "context_length": 32, "num_layers": 2, "hidden_dim": 32, "num_heads": 4}
CONFIGS = {
    "gpt2": GPTConfig.from_preset("gpt2", **SMALL, initializer_range=0.3),
    "llama": GPTConfig.from_preset(
        "smollm2-135m", **SMALL, head_dim=8, num_key_value_heads=2, intermediate_dim=64, initializer_range=0.3
    ),
    "qwen3": GPTConfig.from_preset(
        "nano", **{**SMALL, "head_dim": None, "num_key_value_heads": None}, initializer_range=0.3
    ),
}
IDS = random_ids((2, 12), 128)


def logits(model, ids=IDS):
    return np.asarray(model(ids), np.float32)


def learned(config, rank=4, seed=0):
    """A model whose adapters are no longer zero."""
    model = build(config)
    add_lora(model, rank, alpha=3 * rank)
    draw = np.random.default_rng(seed)
    for layer in projections_of(model):
        layer.lora_kernel_b.assign(draw.normal(0, 0.2, layer.lora_kernel_b.shape))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_new_adapter_changes_nothing_and_learns_alone(kind):
    import keras

    from gpt_keras.training.loss import NextTokenLoss

    plain, model = build(CONFIGS[kind]), build(CONFIGS[kind])
    add_lora(model, 4)
    np.testing.assert_allclose(logits(model), logits(plain), atol=1e-5)
    assert {variable.path.rpartition("/")[2] for variable in model.trainable_variables} == {
        "lora_kernel_a",
        "lora_kernel_b",
    }
    before = {variable.path: np.array(variable) for variable in model.non_trainable_variables}
    model.compile(keras.optimizers.Adam(0.02), NextTokenLoss())
    x, y = IDS[:, :-1], IDS[:, 1:]
    first, *_, last = model.fit(x, y, epochs=30, batch_size=2, verbose=0).history["loss"]
    assert last < 0.7 * first
    for variable in model.non_trainable_variables:
        if not variable.path.startswith(("seed", "adam")):
            np.testing.assert_array_equal(np.array(variable), before[variable.path])


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_it_is_the_same_model(kind):
    model = learned(CONFIGS[kind])
    merged = build(CONFIGS[kind])
    AdapterSwitch(merged).use(Adapter.of(model, "base"))
    np.testing.assert_allclose(logits(merged), logits(model), atol=2e-4)
    assert np.abs(logits(merged) - logits(build(CONFIGS[kind]))).max() > 0.1


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_opens_our_adapter(kind, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = learned(CONFIGS[kind])
    save_folder(build(CONFIGS[kind]), None, tmp_path / "base")
    Adapter.of(model, str(tmp_path / "base")).save(tmp_path / "adapter", model.config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits(model), expected, atol=5e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_we_open_pefts_adapter(kind, rank_stabilized, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_folder(build(CONFIGS[kind]), None, tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    options = LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=rank_stabilized, task_type="CAUSAL_LM",
        init_lora_weights=False, rank_pattern={"q_proj": 2}, fan_in_fan_out=kind == "gpt2",
        alpha_pattern={r"layers\.0\.self_attn\.(q|v)_proj": 24, "c_attn": 12},
    )  # fmt: skip
    theirs = get_peft_model(theirs, options).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS, dtype=torch.long)).logits.numpy()
    model, _ = load_folder(tmp_path / "base")
    AdapterSwitch(model).use(Adapter.load(tmp_path / "adapter", model.config))
    np.testing.assert_allclose(logits(model), expected, atol=5e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_gives_back_the_adapter(kind, tmp_path):
    adapter = Adapter.of(learned(CONFIGS[kind]), "hf:org/base")
    adapter.save(tmp_path / "adapter", CONFIGS[kind])
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path)
    again = Adapter.load(tmp_path / "adapter", CONFIGS[kind])
    assert again.base == "hf:org/base" and again.parts.keys() == adapter.parts.keys()
    for path in adapter.parts:
        np.testing.assert_allclose(again.addition(path), adapter.addition(path), rtol=1e-5, atol=1e-6)


def test_an_adapter_of_a_model_on_the_hub_may_name_its_revision(tmp_path, monkeypatch):
    asked: list[str] = []
    save_folder(build(CONFIGS["llama"]), None, tmp_path / "base")
    monkeypatch.setattr("gpt_keras.language_model.hub_folder", lambda name: asked.append(name) or tmp_path / "base")
    Adapter.of(learned(CONFIGS["llama"]), "org/base@v1.0").save(tmp_path / "adapter", CONFIGS["llama"])
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"]) == ("org/base", "v1.0")  # as PEFT has it
    gpt_keras.load(tmp_path / "adapter")
    assert asked == ["org/base@v1.0"]


def test_adapters_take_turns_beside_one_model_without_a_trace():
    model = build(CONFIGS["llama"])
    switch, plain = AdapterSwitch(model), logits(model)
    first, second = (Adapter.of(learned(CONFIGS["llama"], rank, seed), "base") for rank, seed in ((4, 1), (2, 2)))
    seen = []
    for adapter in (first, second, first, None):
        switch.use(adapter)
        seen.append(logits(model))
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(seen[3], plain)
    assert np.abs(seen[0] - seen[1]).max() > 0.1


def test_a_generating_model_follows_its_adapter(tokenizer):
    from gpt_keras.language_model import LanguageModel

    config = dataclasses.replace(CONFIGS["llama"], vocabulary_size=512)
    lm = LanguageModel(build(config), tokenizer)
    plain = lm.generate("def ", max_new_tokens=8)
    switch = AdapterSwitch(lm.model)
    switch.use(Adapter.of(learned(config), "base"))
    changed = lm.generate("def ", max_new_tokens=8)
    assert changed == LanguageModel(lm.model, tokenizer).generate("def ", max_new_tokens=8) != plain
    switch.use(None)
    assert lm.generate("def ", max_new_tokens=8) == plain


def test_a_model_with_a_live_adapter_generates_as_the_merged_one(tokenizer):
    from gpt_keras.language_model import LanguageModel

    config = dataclasses.replace(CONFIGS["llama"], vocabulary_size=512)
    live, merged = learned(config), build(config)
    AdapterSwitch(merged).use(Adapter.of(live, "base"))
    texts = [LanguageModel(model, tokenizer).generate("def ", max_new_tokens=8) for model in (live, merged)]
    assert texts[0] == texts[1]


def test_an_adapter_s_folder_keeps_the_base_s_end_tokens(tokenizer, tmp_path):
    config = dataclasses.replace(CONFIGS["llama"], vocabulary_size=tokenizer.vocabulary_size)
    ends = Tokenizer.from_files({**tokenizer.files, "generation_config.json": b'{"eos_token_id": [2, 300]}'}, "x")
    gpt_keras.LanguageModel(build(config), ends).save(tmp_path / "base")
    adapter = Adapter.of(learned(config), str(tmp_path / "base"))
    adapter.save(tmp_path / "ours", config, ends.with_template("{{ messages }}"))
    adapter.save(tmp_path / "theirs", config, ends)
    (tmp_path / "theirs" / "generation_config.json").unlink()
    for name in ("base", "ours", "theirs"):
        assert gpt_keras.load(tmp_path / name).tokenizer.end_ids == {2, 300}, name


def test_an_adapter_behind_an_adapter_opens_with_both(tokenizer, tmp_path):
    config = CONFIGS["llama"]
    gpt_keras.LanguageModel(build(config), None).save(tmp_path / "base")
    first, second = (
        Adapter.of(learned(config, *given), str(tmp_path / base)) for *given, base in ((4, 1, "base"), (2, 2, "first"))
    )
    first.save(tmp_path / "first", config)
    second.save(tmp_path / "second", config)
    lm, plain = gpt_keras.load(tmp_path / "second"), build(config)
    for path, kernel in ((layer.kernel.path, layer.kernel) for layer in projections_of(lm.model)):
        (base,) = (layer.kernel for layer in projections_of(plain) if layer.kernel.path == path)
        np.testing.assert_allclose(
            np.array(kernel), np.array(base) + first.addition(path) + second.addition(path), atol=1e-5
        )
    lm.use_adapter(None)
    np.testing.assert_allclose(logits(lm.model), logits(gpt_keras.load(tmp_path / "first").model), atol=1e-5)


def test_a_model_that_has_generated_follows_the_adapter_that_it_is_given(tokenizer):
    config = dataclasses.replace(CONFIGS["llama"], vocabulary_size=tokenizer.vocabulary_size)
    lm = gpt_keras.LanguageModel(build(config), tokenizer)
    before = lm.generate("def ", max_new_tokens=12)
    add_lora(lm.model, 4)
    for number, layer in enumerate(projections_of(lm.model)):
        draw = np.random.default_rng(number)
        layer.lora_kernel_b.assign(draw.normal(0, 0.5, layer.lora_kernel_b.shape))
    after = lm.generate("def ", max_new_tokens=12)
    assert after == gpt_keras.LanguageModel(lm.model, tokenizer).generate("def ", max_new_tokens=12) != before


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_a_model_with_a_live_adapter_is_not_saved_without_it(norm_order, tmp_path):
    config = dataclasses.replace(CONFIGS["llama"], norm_order=norm_order)  # one of Hugging Face's, and one of our own
    model = build(config)
    add_lora(model, 2)
    with pytest.raises(InputError, match="has an adapter beside its weights"):
        save_folder(model, None, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_kernel_in_8_bits_is_saved_and_read_as_what_it_stands_for(tmp_path):
    model = learned(CONFIGS["gpt2"])
    hold_frozen(model, "int8")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-4 * np.abs(logits(model)).max() + 1e-4)


@pytest.mark.parametrize("part", ["query", "value"])
def test_any_projection_may_have_an_adapter_or_8_bits_alone(part):
    plain = build(CONFIGS["llama"])
    expected = logits(plain)
    hold_frozen(plain, "int8")
    assert np.abs(logits(plain) - expected).max() < 0.1 * np.abs(expected).max()
    model = build(CONFIGS["llama"])
    layer = getattr(model.blocks[0].attention, part)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert np.abs(logits(model) - expected).max() > 0.01


def test_an_adapters_folder_opens_as_its_model_with_it(tokenizer, tmp_path):
    import gpt_keras

    config = dataclasses.replace(CONFIGS["llama"], vocabulary_size=512)
    model = learned(config)
    save_folder(build(config), tokenizer, tmp_path / "base")
    for place, base in (("far", str(tmp_path / "base")), ("near", "../base")):
        Adapter.of(model, base).save(tmp_path / place, config)
        lm = gpt_keras.load(tmp_path / place)
        np.testing.assert_allclose(logits(lm.model), logits(model), atol=2e-4)
    lm.use_adapter(None)
    np.testing.assert_array_equal(logits(lm.model), logits(build(config)))
    lm.save(tmp_path / "merged")
    Adapter.of(model, "nowhere").save(tmp_path / "lost", config)
    with pytest.raises(InputError, match="the model that this adapter is for, nowhere, is not there"):
        gpt_keras.load(tmp_path / "lost")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3 is not supported, only plain LoRA"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"base_model_name_or_path": None}, "does not say which model"),
    ],
)
def test_an_adapter_of_another_kind_is_one_line(tmp_path, change, message):
    Adapter.of(learned(CONFIGS["llama"]), "base").save(tmp_path / "adapter", CONFIGS["llama"])
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        Adapter.load(tmp_path / "adapter", CONFIGS["llama"])


def test_a_damaged_adapter_or_one_for_another_model_is_one_line(tmp_path):
    Adapter.of(learned(CONFIGS["llama"]), "base").save(tmp_path / "adapter", CONFIGS["llama"])
    wider = dataclasses.replace(CONFIGS["llama"], intermediate_dim=48)
    with pytest.raises(InputError, match="gate_proj is for another model"):
        Adapter.load(tmp_path / "adapter", wider)
    with pytest.raises(InputError, match=r"unknown tensor .*layers\.1"):
        Adapter.load(tmp_path / "adapter", dataclasses.replace(CONFIGS["llama"], num_layers=1))
    weights = tmp_path / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: cannot be read"):
        Adapter.load(tmp_path / "adapter", CONFIGS["llama"])
    with pytest.raises(InputError, match="no adapter there"):
        Adapter.load(tmp_path / "nothing", CONFIGS["llama"])


def test_what_cannot_be_is_one_line():
    model = build(CONFIGS["llama"])
    with pytest.raises(InputError, match="the rank must be from 1 to the model's width of 32, not 0"):
        add_lora(model, 0)
    with pytest.raises(InputError, match="this model has no adapter"):
        Adapter.of(model, "base")
    add_lora(model, 2)
    with pytest.raises(InputError, match="has adapters already"):
        add_lora(model, 2)
