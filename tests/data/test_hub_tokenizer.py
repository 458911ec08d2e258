"""tokenizer.json through our interface, against transformers."""

import json

import pytest
from hypothesis import given, settings

from gpt_keras.data.errors import InputError
from gpt_keras.data.hub_tokenizer import HubTokenizer
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import TextStream, Tokenizer

from ..conftest import program
from .test_tokenizer import TEXT

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_byte_level(folder, **settings) -> None:
    """A byte-level BPE tokenizer of 400 tokens, as transformers saves one."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    hub = tokenizers.Tokenizer(models.BPE())
    hub.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hub.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    hub.train_from_iterator([program(seed) for seed in range(20)], trainer)
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0], **settings}
    transformers.PreTrainedTokenizerFast(tokenizer_object=hub, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("byte_level")
    write_byte_level(path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_transformers_and_the_text_comes_back(ours, theirs, text):
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == ours.continuation(ids) == text


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_streamed_text_never_splits_a_character(ours, text):
    stream = TextStream(ours)
    parts = [*map(stream.push, ours.encode(text)), stream.flush()]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_special_tokens_in_a_text_are_text_unless_asked_for(ours, theirs):
    text = "<|im_start|>user\nhi<|im_end|>"
    assert not set(ours.encode(text)) & set(ours.special.values())
    assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode_prompt(text) == theirs.encode(text)


def test_begin_end_and_padding_are_what_the_folder_says(ours, theirs):
    assert (ours.begin_id, ours.end_id, ours.padding_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.end_ids == {theirs.eos_token_id}
    assert ours.vocabulary_size == len(theirs)
    assert ours.encode_prompt("") == [theirs.bos_token_id]


def test_all_end_tokens_of_generation_config_count(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert Tokenizer.load(tmp_path).end_ids == {0, 2}


def test_begin_and_end_that_config_json_names_alone_stay(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (tmp_path / name).exists():
            said = json.loads((tmp_path / name).read_text())
            kept = {key: value for key, value in said.items() if key not in ("bos_token", "eos_token")}
            (tmp_path / name).write_text(json.dumps(kept))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}))
    found = Tokenizer.load(tmp_path)
    assert (found.begin_id, found.end_id, found.end_ids) == (0, 1, {1, 2})
    templated = found.with_template("{{ messages }}")
    assert (templated.begin_id, templated.end_id, templated.end_ids) == (0, 1, {1, 2})
    (tmp_path / "again").mkdir()
    found.write(tmp_path / "again", 64)
    again = Tokenizer.load(tmp_path / "again")
    assert (again.begin_id, again.end_id, again.fingerprint) == (0, 1, found.fingerprint)


def test_what_is_written_is_what_was_read(ours, folder, tmp_path):
    ours.write(tmp_path, 64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint


def test_the_older_form_of_gpt2_is_read(ours, tmp_path):
    content = json.loads(ours.files["tokenizer.json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    older = Tokenizer.load(tmp_path)
    assert isinstance(older, HubTokenizer)
    text = program(77) + "é🎉"
    assert older.encode(text) == ours.encode(text)
    assert older.begin_id == older.end_id == ours.token_id("<|endoftext|>")


def test_both_kinds_in_one_folder_give_sentencepiece(tokenizer, tmp_path):
    tokenizer.write(tmp_path, 64)
    assert isinstance(Tokenizer.load(tmp_path), SentencePieceTokenizer)
    assert isinstance(Tokenizer.load(tmp_path / "tokenizer.json"), HubTokenizer)


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_our_own_tokenizer_json_agrees_with_our_tokenizer_model(tokenizer, hub_of_ours, text):
    assert hub_of_ours.encode(text) == tokenizer.encode(text) or any(s in text for s in ["<unk>", *tokenizer.special])


@pytest.fixture(scope="module")
def hub_of_ours(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ours")
    tokenizer.write(path, 64)
    return Tokenizer.load(path / "tokenizer.json")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_other_sentencepiece_models_are_written_equal(kind, prefix, rule, tmp_path):
    """Foreign settings: a dummy prefix, normalization, squeezed spaces."""
    import sentencepiece
    import transformers

    text = tmp_path / "text"
    text.write_text("\n".join(line for seed in range(20) for line in program(seed).splitlines() if line), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=350, model_type=kind, byte_fallback=True,
        add_dummy_prefix=prefix, normalization_rule_name=rule, remove_extra_whitespaces=rule == "nmt_nfkc",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    foreign = Tokenizer.load(tmp_path / "tokenizer.model")
    (tmp_path / "folder").mkdir()
    foreign.write(tmp_path / "folder", 64)
    hub = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    for probe in ["def f(x): return x", "for  every word é 你好", "limit=3", " leading", "x\ty"]:
        assert hub.encode(probe, add_special_tokens=False) == foreign.encode(probe), probe


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_one_clear_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json, or a damaged one") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer_has_none(tmp_path):
    assert Tokenizer.find(tmp_path) is None
    with pytest.raises(InputError, match="no tokenizer there"):
        Tokenizer.load(tmp_path)


def test_a_lone_surrogate_is_refused(ours):
    with pytest.raises(InputError, match="lone surrogate"):
        ours.encode("a\ud800")
