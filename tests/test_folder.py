"""The model folder against transformers, both ways, and against damage."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpt_keras
from gpt_keras.architectures import architecture_for, read_config, write_config
from gpt_keras.config import PRESETS, GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.folder import load_folder, save_folder

from .conftest import build, random_ids
from .test_model import BASE

LLAMA = {"position": "rotary", "normalization": "rms_norm", "feed_forward": "swiglu", "use_bias": False}
TYPES = {
    "gpt2": {},
    "openai-gpt": {"norm_order": "post"},
    "llama": {**LLAMA, "num_key_value_heads": 2},
    "qwen3": {**LLAMA, "num_key_value_heads": 2, "head_dim": 16, "qk_norm": True, "tie_embeddings": False},
}


def config_of(name: str) -> GPTConfig:
    changes = {"vocabulary_size": 512, "head_dim": None, "num_key_value_heads": None, **TYPES[name]}
    return dataclasses.replace(BASE, **changes)


@pytest.fixture(params=TYPES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tokenizer, tmp_path):
    save_folder(build(config_of(kind)), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_what_is_written_reads_back_equal(kind, folder, tokenizer):
    model = build(config_of(kind))
    loaded, same_tokenizer = load_folder(folder)
    assert loaded.config == model.config
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_transformers_opens_what_is_written(kind, folder, tokenizer):
    import torch
    import transformers

    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(np.asarray(load_folder(folder)[0](ids)), expected, atol=1e-4)
    hub = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n        return [x, 'é🎉']\n\n\n"
    assert hub.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert hub.decode(tokenizer.encode(text)) == text
    assert (hub.bos_token_id, hub.eos_token_id, hub.pad_token_id) == (
        tokenizer.begin_id,
        tokenizer.end_id,
        tokenizer.padding_id,
    )


def test_what_transformers_writes_opens_here(kind, folder, tmp_path):
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "tokenizer.model", tmp_path / "theirs")
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(np.asarray(gpt_keras.load(tmp_path / "theirs").model(ids)), expected, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_hugging_face_type(name):
    config = GPTConfig.from_preset(name)
    assert architecture_for(config)[0] is not None
    read, _ = read_config(json.loads(json.dumps(write_config(config))))
    assert read == dataclasses.replace(config, initializer_range=read.initializer_range)


def test_a_configuration_beyond_hugging_face_round_trips_as_our_own_type(tokenizer, tmp_path):
    config = dataclasses.replace(BASE, vocabulary_size=512, position="sinusoidal")
    assert architecture_for(config) == (None, "position")
    save_folder(build(config), tokenizer, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "gpt_keras"
    ids = random_ids((1, 9), 512)
    loaded, _ = load_folder(tmp_path / "model")
    np.testing.assert_array_equal(np.asarray(loaded(ids)), np.asarray(build(config)(ids)))


def damage_tensors(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = {
    "gpt2": "transformer.h.1.attn.c_proj.weight",
    "openai-gpt": "transformer.h.1.attn.c_proj.weight",
    "llama": "model.layers.1.self_attn.o_proj.weight",
    "qwen3": "model.layers.1.self_attn.o_proj.weight",
}


def test_a_missing_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.pop(NAME[kind]))
    with pytest.raises(InputError, match=f"{NAME[kind]} is missing"):
        load_folder(folder)


def test_an_unknown_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.update(surprise=np.zeros(3, np.float32)))
    with pytest.raises(InputError, match="unknown tensor surprise"):
        load_folder(folder)


def test_a_misshapen_tensor_is_named(kind, folder):
    damage_tensors(folder, lambda tensors: tensors.update({NAME[kind]: np.zeros((3, 5), np.float32)}))
    with pytest.raises(InputError, match=NAME[kind]):
        load_folder(folder)


def test_a_cut_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        load_folder(folder)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle, which is never opened"):
        load_folder(folder)


def test_a_config_that_contradicts_the_tensors_is_an_error(kind, folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["n_layer" if kind in ("gpt2", "openai-gpt") else "num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="unknown tensor"):
        load_folder(folder)


def test_no_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"no model folder there \(config\.json is missing\)"):
        gpt_keras.load(tmp_path / "nothing")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read(folder, dtype):
    import safetensors.torch
    import torch

    path = folder / "model.safetensors"
    tensors = {k: v.to(getattr(torch, dtype)) for k, v in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path)
    exact, _ = load_folder(folder)
    expected = {k: v.float().numpy() for k, v in tensors.items()}
    embedding = next(
        v for k, v in expected.items() if any(name in k for name in ("embed_tokens", "tokens_embed", "wte"))
    )
    np.testing.assert_array_equal(np.array(exact.embedding.token_embedding), embedding)


def test_a_tokenizer_of_another_size_is_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="the tokenizer has 512 pieces, the model 61"):
        save_folder(build(BASE), tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert keras.backend.backend() in ("tensorflow", "jax")
