import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.mixture import Mixture
from gpt_keras.data.preparation import prepare, split_and_train_tokenizer
from gpt_keras.data.pretraining import Batches, documents_in, mix, permute, validation_windows
from gpt_keras.data.shards import Corpus
from gpt_keras.data.tokenizer import Tokenizer
from tests.conftest import program

from ..conftest import PATIENCE
from .test_hub_tokenizer import write_byte_level


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_looks_random():
    size = 5000
    order = permute(np.arange(size), size, 1)
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_batch_n_is_the_same_wherever_one_starts(corpus):
    batches = Batches(corpus.streams["train"], 32, 4, seed=5)
    sequential = [tuple(part.numpy() for part in batch) for batch in batches.dataset(0, 40)]
    for start in np.random.default_rng(0).integers(0, 40, 50).tolist():
        first = next(iter(batches.dataset(start, start + 1)))
        assert all(np.array_equal(a, b) for a, b in zip(first, sequential[start], strict=True))
    assert not np.array_equal(sequential[0][0], Batches(corpus.streams["train"], 32, 4, seed=6).batch(0)[0])


def test_targets_are_the_tokens_one_further(corpus):
    tokens, targets = Batches(corpus.streams["train"], 32, 4).batch(3)
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


def test_an_epoch_visits_every_window_once(corpus):
    stream = corpus.streams["train"]
    batches = Batches(stream, 32, 1, seed=2)
    for epoch in (0, 1):
        starts = np.sort(batches._places(epoch * batches.num_windows, batches.num_windows)[1])
        assert np.all(np.diff(starts) == 32)
        assert starts[0] < 32
        assert starts[-1] + 33 <= len(stream)


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_hosts_visit_every_window_once_in_an_epoch(corpus, hosts):
    stream = corpus.streams["train"]
    rows = 10  # neither 3 nor 7 divides it, and it does not divide the windows of an epoch
    shares = [Batches(stream, 32, rows, seed=1, host=host, num_hosts=hosts) for host in range(hosts)]
    size = shares[0].num_windows
    assert size % rows
    drawn = []
    for number in range(-(-size // rows)):
        parts = [share.batch(number)[0] for share in shares]
        row = np.empty((rows, 32), np.int32)
        for host, part in enumerate(parts):
            row[host::hosts] = part
        assert np.array_equal(row, Batches(stream, 32, rows, seed=1).batch(number)[0])
        drawn.extend(map(bytes, row))
    starts = Batches(stream, 32, rows, seed=1)._places(0, size)[1]
    assert sorted(drawn[:size]) == sorted(bytes(stream.read(start, 32)) for start in np.sort(starts).tolist())


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), draws=st.integers(2000, 5000))
@settings(max_examples=50, deadline=None)
def test_streams_are_mixed_by_weight(corpus, weights, draws):
    stream = corpus.streams["train"]
    shares = Batches([stream] * len(weights), 32, 4, weights=weights)._shares
    which, index = mix(np.arange(draws), shares)
    for i, weight in enumerate(weights):
        assert abs((which == i).mean() - weight / sum(weights)) < 0.005
        assert np.array_equal(index[which == i], np.arange((which == i).sum()))
    later = mix(np.arange(1000, draws), shares)
    assert np.array_equal(later[0], which[1000:]) and np.array_equal(later[1], index[1000:])


def test_a_lost_weight_and_a_host_without_rows_are_told(corpus):
    stream = corpus.streams["train"]
    with pytest.raises(InputError, match="lost beside the others"):
        Batches([stream, stream], 32, 4, weights=[1.0, 1e-9])
    with pytest.raises(InputError, match="use a larger batch"):
        Batches(stream, 32, 4, host=5, num_hosts=6)


def test_documents_positions_and_weights_token_by_token(corpus):
    begin = corpus.tokenizer.begin_id
    batches = Batches(corpus.streams["train"], 600, 8, seed=3, begin_id=begin)
    ((inputs, targets, weights),) = batches.dataset(2, 3)
    inputs, targets, weights = {k: v.numpy() for k, v in inputs.items()}, targets.numpy(), weights.numpy()
    plain = Batches(corpus.streams["train"], 600, 8, seed=3).batch(2)
    assert np.array_equal(inputs["token_ids"], plain[0]) and np.array_equal(targets, plain[1])
    assert (inputs["token_ids"] == begin).sum() > 3
    for row in range(8):
        position = segment = 0
        for place in range(600):
            if inputs["token_ids"][row, place] == begin:
                position, segment = 0, segment + 1
            assert inputs["positions"][row, place] == position
            assert inputs["segment_ids"][row, place] == segment
            assert weights[row, place] == (targets[row, place] != begin)
            position += 1
    other = batches.batch(2)
    assert all(np.array_equal(other[0][name], inputs[name]) for name in inputs)
    assert np.array_equal(other[2], weights)


def test_documents_in_the_example_of_the_docstring():
    positions, segments = documents_in(np.array([[7, 8, 2, 1, 9]], np.int32), begin_id=1)
    assert positions.tolist() == [[0, 1, 2, 0, 1]]
    assert segments.tolist() == [[0, 0, 0, 1, 1]]


def test_one_token_may_begin_and_end_documents(source, tmp_path):
    write_byte_level(tmp_path / "one", eos_token="<|endoftext|>")
    tokenizer = Tokenizer.load(tmp_path / "one")
    both = tokenizer.begin_id
    assert tokenizer.end_id == both
    corpus = prepare(str(source), tokenizer, tmp_path / "corpus")
    held_out = corpus.streams["validation"]
    scored = sum(weights.sum() for *_, weights in validation_windows(corpus, 48, 4))
    ids = held_out.read(0, len(held_out))
    documents = 1 + np.sum((ids[1:] == both) & (ids[:-1] == both))
    assert documents > 1 and scored == len(ids) - documents  # all tokens but those that begin a document
    batches = Batches(corpus.streams["train"], 600, 8, begin_id=both, end_id=both)
    inputs, targets, weights = batches.batch(0)
    ends = (targets == both) & (inputs["token_ids"] != both)
    begins = (targets == both) & (inputs["token_ids"] == both)
    assert ends.sum() > 3 and np.all(weights[ends] == 1) and np.array_equal(weights == 0, begins)
    for row in range(8):
        places = np.flatnonzero(begins[row, :-1]) + 1
        assert np.all(inputs["positions"][row, places] == 0)
        assert inputs["segment_ids"][row, -1] - inputs["segment_ids"][row, 0] == len(places)
    ((other, _, again),) = batches.dataset(0, 1)
    assert np.array_equal(again, weights) and np.array_equal(other["positions"], inputs["positions"])


def test_a_context_longer_than_the_corpus_says_how_long_it_may_be(corpus):
    stream = corpus.streams["train"]
    with pytest.raises(InputError, match=r"--context-length \d+ or less") as error:
        Batches(stream, len(stream), 1)
    possible = int(str(error.value).split("--context-length ")[1].split(" ")[0])
    Batches(stream, possible, 1).batch(0)


def test_validation_windows_score_every_token_once(corpus):
    stream = corpus.streams["validation"]
    ids = stream.read(0, len(stream))
    scored = []
    for tokens, targets, weights in validation_windows(corpus, 48, 4):
        assert tokens.shape == targets.shape == weights.shape == (4, 48)
        for row in range(4):
            count = int(weights[row].sum())
            assert np.all(weights[row, :count] == 1)
            scored.append(targets[row, :count])
    assert np.array_equal(np.concatenate(scored), ids[ids != corpus.tokenizer.begin_id])


def test_a_limit_takes_windows_from_all_over_the_held_out_text(corpus):
    everything = [
        bytes(row[w > 0])
        for _, t, weights in validation_windows(corpus, 16, 4)
        for row, w in zip(t, weights, strict=True)
    ]
    limit = len(corpus.streams["validation"]) // 3
    some = list(validation_windows(corpus, 16, 4, limit))
    assert limit * 0.8 < sum(weights.sum() for *_, weights in some) <= limit
    found = [i for i, row in enumerate(everything) if any(row in bytes(t) for _, t, _ in some)]
    assert min(found) < len(everything) * 0.1 and max(found) > len(everything) * 0.9


@pytest.fixture
def two(corpus, tokenizer, tmp_path) -> list[Corpus]:
    """The corpus, and one of other text from two sources with weights."""
    for name, seed in (("a", 5000), ("b", 6000)):
        lines = (json.dumps({"text": program(seed + i)}) + "\n" for i in range(60))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sources = [f"{tmp_path}/a.jsonl=3", f"{tmp_path}/b.jsonl=1"]
    return [corpus, prepare(sources, tokenizer, tmp_path / "other")]


def test_a_mixture_draws_from_its_corpora_and_their_sources_by_weight(two):
    batches = Batches.of(Mixture([(two[0], 1.0), (two[1], 2.0)]), 32, 10)
    parts = [two[0].streams["train"], *two[1].source_streams()]
    windows = [set(map(bytes, np.lib.stride_tricks.sliding_window_view(part.read(0, len(part)), 32))) for part in parts]
    rows = [bytes(row) for number in range(40) for row in batches.batch(number)[0]]
    drawn = [sum(row in own for row in rows) for own in windows]
    assert len(rows) == 400 <= sum(drawn) < 410  # some text is in more than one
    assert np.allclose(drawn, [400 / 3, 200, 200 / 3], atol=5)
    alike = Batches.of(Mixture([(two[0], None), (two[1], None)]), 32, 10)
    rows = [bytes(row) for number in range(40) for row in alike.batch(number)[0]]
    length = [len(corpus.streams["train"]) for corpus in two]
    assert abs(sum(row in windows[0] for row in rows) - 400 * length[0] / sum(length)) < 5


def test_a_mixture_is_measured_by_all_that_its_corpora_hold_out(two):
    mixture = Mixture([(two[0], 1.0), (two[1], 2.0)])
    ids = np.concatenate([corpus.streams["validation"].read(0, len(corpus.streams["validation"])) for corpus in two])
    stream = mixture.streams["validation"]
    assert np.array_equal(stream.read(0, len(stream)), ids)
    assert mixture.splits["validation"]["tokens"] == len(ids)
    texts = [document.text for document in mixture.held_out_documents()]
    assert mixture.splits["validation"]["bytes"] == sum(len(text.encode()) for text in texts)
    scored = sum(weights.sum() for *_, weights in validation_windows(mixture, 48, 4))
    assert scored == len(ids) - len(texts)


def test_corpora_that_cannot_be_mixed_are_told(two, source, tmp_path):
    with pytest.raises(InputError, match="every corpus a weight"):
        Mixture([(two[0], 1.0), (two[1], None)])
    other = prepare(source, split_and_train_tokenizer(source, 400).tokenizer, tmp_path / "foreign")
    with pytest.raises(InputError, match="different tokenizers"):
        Mixture.open([str(two[0].folder), str(other.folder)])
    with pytest.raises(InputError, match=r"a\.jsonl, a part of .*, has \d+,\d+ tokens to train on, too few"):
        Batches.of(Mixture([(two[1], None)]), 1_000_000, 4)
    with pytest.raises(InputError, match="weight must be a number above 0"):
        Mixture.open([f"{two[0].folder}=-1", f"{two[1].folder}=1"])


def test_a_program_ends_while_batches_are_made_ahead(corpus):
    program = (
        "from gpt_keras.data.shards import Corpus\nfrom gpt_keras.data.pretraining import Batches\n"
        f"batches = Batches(Corpus({str(corpus.folder)!r}).streams['train'], 512, 16)\n"
        "iterator = iter(batches.dataset())\nnext(iterator)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
