import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions, split_and_train_tokenizer
from gpt_keras.data.sentencepiece_to_hub import build_hub_tokenizer, check_hub_tokenizer
from gpt_keras.data.sentencepiece_tokenizer import ROLES, train_tokenizer
from gpt_keras.data.sources import open_source
from gpt_keras.data.tokenizer import TextStream, Tokenizer
from tests.conftest import program

from ..conftest import PATIENCE

# Any string without NUL and lone surrogates, rich in what tokenizers like to lose.
SPACES = [
    "\n",
    "\n\n    ",
    "\t",
    "  ",
    "\r\n",
    "\u2581",
    "\u2582",
    "\u2582a",
    "\u2582b",
    "\u00a0",
    "\ufeff",
    "\x01",
    "\x7f",
]
SPELLED = ["<s>", "</s>", "<pad>", "<unk>", "<|user|>", "<0x0A>"]
TRICKY = st.sampled_from([*SPACES, *SPELLED, "é", "e\u0301", "🎉", "👩\u200d💻", "\ufffd", "ﬁ", "２"])
ANY = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
TEXT = st.lists(TRICKY | ANY | st.text(ANY, max_size=5), max_size=30).map("".join)


@given(text=TEXT)
@settings(max_examples=500, deadline=None)
def test_every_string_comes_back_as_it_went_in(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_text_never_encodes_to_a_control_token(tokenizer, text):
    control = {tokenizer.begin_id, tokenizer.end_id, tokenizer.padding_id, *map(tokenizer.role_id, ROLES)}
    assert not control.intersection(tokenizer.encode(text))


def test_control_tokens_are_there_and_all_different(tokenizer):
    ids = [tokenizer.begin_id, tokenizer.end_id, tokenizer.padding_id, *map(tokenizer.role_id, ROLES)]
    assert len(set(ids)) == 6
    assert all(0 < i < tokenizer.vocabulary_size for i in ids)


def test_a_newline_and_its_indent_are_one_token(tokenizer):
    assert len(tokenizer.encode("\n        ")) == 1


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_what_no_token_can_represent_is_a_clear_error(tokenizer, text):
    with pytest.raises(InputError, match=r"NUL character \(at 1\)|surrogate \(at 1\)"):
        tokenizer.encode(text)


@pytest.fixture(scope="session")
def hub(tokenizer):
    return build_hub_tokenizer(tokenizer)


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_hub_tokenizer_gives_the_same_ids_and_text(tokenizer, hub, text):
    spelled_out = ["<unk>", *tokenizer.special]
    for special in spelled_out:  # Hugging Face parses special tokens in text; that is its convention
        text = text.replace(special, "")
    assume(not any(special in text for special in spelled_out))
    assert hub.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    assert hub.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_special_pieces_in_a_text_do_not_keep_a_tokenizer_from_being_written(tokenizer):
    check_hub_tokenizer(tokenizer, ["the <unk> film", "<s>old</s> price"])


def test_a_tokenizer_that_hugging_face_cannot_mirror_is_told(source):
    unigram = train_tokenizer((document.text for document in open_source(source)()), 350, model_type="unigram")
    with pytest.raises(InputError, match=r"tokenizer\.json would give other ids"):
        check_hub_tokenizer(unigram)


def test_the_tokenizer_has_seen_the_training_part_only(source, corpus):
    held_out = {document.text for document in corpus.held_out_documents()}
    everything = [document.text for document in open_source(source)()]
    training = [text for text in everything if text not in held_out]
    assert training != everything
    fingerprint = split_and_train_tokenizer(source, 512).tokenizer.fingerprint
    assert fingerprint == train_tokenizer(training, 512).fingerprint
    assert fingerprint != train_tokenizer(everything, 512).fingerprint


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_sample_gives_the_same_tokenizer_whatever_the_workers(source, model_type):
    def train(workers):
        options = PreparationOptions(workers=workers)
        return split_and_train_tokenizer(source, 400, options, model_type=model_type, sample_bytes=60_000)

    one, other = train(1), train(2)
    assert one.tokenizer.model == other.tokenizer.model
    assert 40_000 < one.sample_bytes <= 60_000
    assert 1.0 < one.bytes_per_token < 8.0


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """Trains on two sources of 400 pages, each with its own first word; gives back the sample."""
    for name, seed in (("north", 0), ("south", 1000)):
        lines = (json.dumps({"text": f"{name} {i} {program(seed + i)}"}) + "\n" for i in range(400))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    seen: list[list[str]] = []

    def keep(texts, *arguments):
        seen.append(list(texts))
        return train_tokenizer(seen[-1], 400)

    monkeypatch.setattr("gpt_keras.data.preparation.train_tokenizer", keep)

    def sample(north: str, south: str, size: int) -> dict[str, list[str]]:
        sources = [f"{tmp_path}/north.jsonl{north}", f"{tmp_path}/south.jsonl{south}"]
        trained = split_and_train_tokenizer(sources, 400, PreparationOptions(workers=1), sample_bytes=size)
        assert trained.sample_bytes == sum(len(text.encode()) for text in seen[-1]) <= size
        return {name: [text for text in seen[-1] if text.startswith(name)] for name in ("north", "south")}

    return sample


def test_a_sample_is_spread_over_the_sources_and_does_not_follow_their_order(sampled):
    drawn = sampled("", "", 100_000)
    for name in ("north", "south"):
        numbers = [int(text.split()[1]) for text in drawn[name]]
        assert 30 < len(numbers) < 200
        assert min(numbers) < 40 and max(numbers) > 360
        assert numbers == sorted(numbers)


def test_a_sample_follows_the_weights_of_the_sources(sampled):
    drawn = sampled("=3", "=1", 100_000)
    north, south = (sum(map(len, drawn[name])) for name in ("north", "south"))
    assert north + south > 90_000
    assert 2.5 < north / south < 3.5


def test_a_larger_sample_has_all_that_a_smaller_one_has(sampled):
    small, large, everything = (sampled("", "", size) for size in (20_000, 80_000, 100_000_000))
    for name in ("north", "south"):
        assert set(small[name]) < set(large[name]) < set(everything[name])
        assert len(everything[name]) > 350


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_streamed_text_never_splits_a_character(tokenizer, text):
    stream = TextStream(tokenizer)
    parts = [*map(stream.push, tokenizer.encode(text)), stream.flush()]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_a_corpus_too_small_for_the_vocabulary_says_how_large_it_may_be():
    with pytest.raises(InputError, match=r"at most (\d+)") as error:
        train_tokenizer(["hello world, hello there"], 5000)
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    assert train_tokenizer(["hello world, hello there"], largest).vocabulary_size == largest


def test_a_vocabulary_too_small_for_bytes_is_a_clear_error(source):
    with pytest.raises(InputError, match="too small for the bytes"):
        train_tokenizer(["some text " * 50], 100)


def test_save_and_load_keep_the_fingerprint(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05abc"])
def test_a_damaged_model_is_a_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_interrupt_during_training_leaves_nothing_behind(tmp_path):
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt_keras.tokenizer", "train", "python-stdlib", "--output", str(tmp_path / "t.model")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("tmp/*/model")) and time.monotonic() < deadline:  # SentencePiece is at work
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]
