import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.fast_encoding import FastEncoder
from gpt_keras.data.sentencepiece_tokenizer import train_tokenizer
from tests.conftest import program

PARTS = st.sampled_from(["def ", "  ", "\n", "\n\n", "\n    ", "x", "▁", "▂", "日本語", "é", "\t", "\r\n", "word", " "])
TEXTS = st.lists(st.one_of(st.lists(PARTS, max_size=30).map("".join), st.text(max_size=60)), max_size=8)


def encoded(encoder, texts):
    ids, ends = encoder.encode(texts)
    return [part.tolist() for part in np.split(ids, ends[:-1])] if texts else []


@given(batches=st.lists(TEXTS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_sentencepiece(tokenizer, batches):
    encoder = FastEncoder(tokenizer, slots=16)  # words push each other out
    for texts in batches:
        texts = [text.replace("\0", "").encode("utf-8", "ignore").decode() for text in texts]
        assert encoded(encoder, texts) == tokenizer.encode_batch(texts)


def test_a_full_table_begins_anew(tokenizer):
    encoder = FastEncoder(tokenizer, slots=64)
    for seed in range(30):
        texts = [program(seed), " ".join(map(str, range(seed * 100, seed * 100 + 300)))]
        assert encoded(encoder, texts) == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_only_a_tokenizer_without_pieces_over_words_is_taken_by_word(source, kind):
    texts = [program(seed) for seed in range(20)]
    tokenizer = train_tokenizer(texts, 350, kind)
    assert tokenizer.encodes_by_word() == (kind == "bpe")
    assert encoded(FastEncoder(tokenizer), texts) == tokenizer.encode_batch(texts)
