"""The tokenizer as TensorFlow operations, against the tokenizer itself."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.hub_tokenizer import HubTokenizer
from gpt_keras.data.tokenizer import Tokenizer

from ..conftest import slow_but
from .test_hub_tokenizer import write_byte_level
from .test_tokenizer import TEXT

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LETTERS = "def parse read line count's'LL 0123456789 \n\t\r\x0b\x85\u00a0\u2028\u3000.,!?_é½٣日本🎉e\u0301"
WORDS = st.one_of(TEXT, st.text(LETTERS, max_size=60), st.text(" \n\u00a0a", max_size=12))
KINDS = ["gpt2", "smollm2", "llama3", "qwen3", "added", "without", "unknown"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> HubTokenizer:
    folder = tmp_path_factory.mktemp("byte_level")
    write_byte_level(folder)
    tokenizer = Tokenizer.load(folder)
    assert isinstance(tokenizer, HubTokenizer)
    return tokenizer


def changed(tokenizer: HubTokenizer, model=None, **parts) -> HubTokenizer:
    """The same tokenizer with other parts of its tokenizer.json."""
    content = json.loads(tokenizer.files["tokenizer.json"])
    content |= parts
    content["model"] |= model or {}
    return HubTokenizer(json.dumps(content).encode(), settings=tokenizer.settings)


def kinds(tokenizer: HubTokenizer) -> dict[str, HubTokenizer]:
    """How models of that name cut words, with the same merges."""
    by_regex = split_at(LLAMA3)
    whole_words = [by_regex, {**BYTES, "use_regex": False}]
    digits = [{"type": "Digits", "individual_digits": True}, BYTES]
    added = json.loads(tokenizer.files["tokenizer.json"])["added_tokens"]
    code = {**added[0], "id": tokenizer.vocabulary_size, "content": "  def ", "special": False, "normalized": False}
    content = json.loads(tokenizer.files["tokenizer.json"])["model"]
    few = {piece: token for piece, token in content["vocab"].items() if not {"x", "Ã"} & set(piece)}
    merges = [pair for pair in content["merges"] if "".join(pair) in few and set(pair) <= set(few)]
    return {
        "gpt2": tokenizer,
        "without": changed(tokenizer, {"vocab": few, "merges": merges}),
        "unknown": changed(tokenizer, {"vocab": few, "merges": merges, "unk_token": "?"}),
        "smollm2": changed(tokenizer, pre_tokenizer={"type": "Sequence", "pretokenizers": digits}),
        "llama3": changed(
            tokenizer, {"ignore_merges": True}, pre_tokenizer={"type": "Sequence", "pretokenizers": whole_words}
        ),
        "qwen3": changed(
            tokenizer,
            normalizer={"type": "NFC"},
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {**by_regex, "pattern": {"Regex": LLAMA3.replace("{1,3}", "")}},
                    {**BYTES, "use_regex": False},
                ],
            },
        ),
        "added": changed(tokenizer, added_tokens=[*added, code]),
    }


def drawn(strategy, count: int) -> list:
    """Examples of a strategy, all at once: a graph takes them as one batch."""
    found = []

    @given(value=strategy)
    @settings(max_examples=count, deadline=None, database=None)
    def collect(value):
        found.append(value)

    collect()
    return found


def assert_equal(tokenizer: Tokenizer, texts: list[str]) -> None:
    import tensorflow as tf

    from gpt_keras.data.graph_tokenizer import GraphTokenizer

    graph = GraphTokenizer(tokenizer)
    encode = tf.function(graph.encode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    tokens = encode(tf.constant(texts))
    assert tokens.to_list() == tokenizer.encode_batch(texts)
    assert [text.decode() for text in graph.decode(tokens).numpy()] == [tokenizer.decode(i) for i in tokens.to_list()]
    prompts = graph.encode_prompt(tf.constant(texts))
    assert prompts.to_list() == [tokenizer.encode_prompt(text) for text in texts]


@pytest.mark.tensorflow
def test_sentencepiece_gives_the_same_ids_and_the_text_comes_back(tokenizer):
    texts = drawn(TEXT, 300)
    assert_equal(tokenizer, texts)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", slow_but(KINDS, "gpt2", "llama3"))
def test_byte_level_bpe_gives_the_same_ids(byte_level, kind):
    special = ["<|im_start|>user\nhi<|im_end|>", "<|im_start|>", "x<|endoftext|>", "<|endoftext|>y"]
    long = ["e" * 700, "x" + " " * 500 + "y", "", "a", " ", "  def  def "]
    assert_equal(kinds(byte_level)[kind], [*drawn(WORDS, 500), *special, *long])


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_any_tokens_continue_a_text_as_they_do_in_python_and_always_in_utf_8(tokenizer, byte_level, kind):
    import tensorflow as tf

    from gpt_keras.data.graph_tokenizer import GraphTokenizer

    plain = tokenizer if kind == "sentencepiece" else byte_level
    rows = drawn(st.lists(st.integers(0, plain.vocabulary_size - 1), max_size=12), 300)
    rows += [plain.encode("🎉")[:-1], plain.encode("▁▂é")]
    graph = GraphTokenizer(plain)
    found = graph.continuation(tf.ragged.constant(rows, tf.int32, ragged_rank=1)).numpy()
    assert [text.decode("utf-8") for text in found] == [plain.continuation(row) for row in rows]


@pytest.mark.tensorflow
def test_broken_utf_8_is_read_as_replacement_characters(tokenizer, byte_level):
    import tensorflow as tf

    from gpt_keras.data.graph_tokenizer import GraphTokenizer

    for plain in (tokenizer, byte_level):
        graph = GraphTokenizer(plain)
        (ids,) = graph.encode(tf.constant([b"a\xff\xe2\x82z"])).to_list()
        assert ids == plain.encode("a\ufffd\ufffd\ufffdz")


def split_at(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "null, which is not byte-level"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": False}}, "add_prefix_space"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"dropout": 0.5}}, "type BPE with these settings"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split_at("a(?=b)"), BYTES]}},
            r"look-around.* of a\(\?=b\)",
        ),
    ],
)
def test_what_no_graph_can_do_is_named(byte_level, change, message):
    from gpt_keras.data.graph_tokenizer import GraphTokenizer

    with pytest.raises(InputError, match=f"cannot be part of a TensorFlow graph.*{message}"):
        GraphTokenizer(changed(byte_level, **change))
