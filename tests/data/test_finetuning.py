"""Packed fine-tuning batches: what is in them, who sees whom, and that batch n is always the same."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_keras.config import GPTConfig
from gpt_keras.data.conversations import encode_for_training
from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import Examples, PackedBatches, pack, read_examples
from gpt_keras.data.tokenizer import Tokenizer

from ..conftest import build, program
from .test_conversations import CHATML
from .test_hub_tokenizer import write_byte_level

CONTEXT = 96


def talk(number: int) -> list[dict[str, str]]:
    text = program(number)
    turns = [{"role": "user", "content": text[: 5 + 7 * (number % 9)]}, {"role": "assistant", "content": text[60:90]}]
    return turns if number % 3 else [{"role": "system", "content": "Be kind."}, *turns]


def write(path, conversations) -> str:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("talk") / "talk.jsonl", [talk(number) for number in range(60)])


@pytest.fixture(scope="module")
def examples(data, tokenizer) -> Examples:
    return read_examples(data, tokenizer, CONTEXT)


def batches(examples, tokenizer, batch_size=4, **options) -> PackedBatches:
    return PackedBatches(examples, CONTEXT, batch_size, tokenizer.padding_id, **options)


def in_row(inputs, targets, weights, row):
    """The examples of a row: their tokens, and which of them are trained."""
    found = []
    for segment in range(1, inputs["segment_ids"][row].max() + 1):
        (here,) = np.nonzero(inputs["segment_ids"][row] == segment)
        assert (np.diff(here) == 1).all()
        np.testing.assert_array_equal(inputs["positions"][row, here], np.arange(len(here)))
        ids, behind = inputs["token_ids"][row, here].tolist(), targets[row, here].tolist()
        assert ids[1:] == behind[:-1]
        found.append(((*ids, behind[-1]), tuple(weights[row, here].tolist())))
    return found


def test_examples_are_the_conversations(examples, tokenizer):
    assert len(examples) == 60
    for number in range(60):
        ids, trained = encode_for_training(tokenizer, talk(number))
        here = slice(examples.starts[number], examples.ends[number])
        assert examples.tokens[here].tolist() == ids and examples.trained[here].tolist() == trained


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_the_examples_do_not_depend_on_the_number_of_workers(kind, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_keras.data.reading.BLOCK_BYTES", 4000)  # several parts
    if kind == "byte-level":
        write_byte_level(tmp_path, chat_template=CHATML)
        tokenizer = Tokenizer.load(tmp_path)
    path = write(tmp_path / "talk.jsonl", [talk(number) for number in range(200)])
    one, two = (read_examples(path, tokenizer, 400, workers=workers) for workers in (1, 2))
    assert len(one) == 200 and one.trained.any()
    for name in ("tokens", "trained", "ends"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    with open(path, "a") as stream:
        stream.write('{"messages": [{"role": "tool", "content": "x"}]}\n')
    with pytest.raises(InputError, match=r"talk\.jsonl:201: "):
        read_examples(path, tokenizer, 400, workers=2)


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_hosts_see_every_example_once_in_an_epoch(examples, tokenizer, hosts):
    expected = sorted(
        (tuple(examples.tokens[a:b].tolist()), tuple(examples.trained[a + 1 : b].astype(float).tolist()))
        for a, b in zip(examples.starts, examples.ends, strict=True)
    )
    parts = [batches(examples, tokenizer, 8, host=host, num_hosts=hosts) for host in range(hosts)]
    rows_an_epoch = len(parts[0].rows)
    drawn = []
    for number in range(-(-3 * rows_an_epoch // 8)):
        rows = {}
        for host, part in enumerate(parts):
            batch = part.batch(number)
            for row in range(len(batch[1])):
                rows[host + row * hosts] = in_row(*batch, row)
        drawn += [rows[place] for place in sorted(rows)]
    orders = []
    for epoch in range(3):
        rows = drawn[epoch * rows_an_epoch : (epoch + 1) * rows_an_epoch]
        assert sorted(itertools.chain.from_iterable(rows)) == expected
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]


def test_batch_n_is_the_same_wherever_one_starts(examples, tokenizer):
    made = batches(examples, tokenizer, seed=5)
    run = list(made.dataset(stop=120))
    for start in np.random.default_rng(0).integers(0, 119, 50).tolist():
        inputs, targets, weights = next(iter(made.dataset(start=start)))
        for name in inputs:
            np.testing.assert_array_equal(inputs[name], run[start][0][name])
            np.testing.assert_array_equal(inputs[name], made.batch(start)[0][name])
        np.testing.assert_array_equal(targets, run[start][1])
        np.testing.assert_array_equal(weights, run[start][2])
    assert inputs["token_ids"].shape == targets.shape == weights.shape == (4, CONTEXT)
    other = batches(examples, tokenizer, seed=6).batch(3)[1]
    assert not np.array_equal(other, made.batch(3)[1])


def test_a_row_is_that_of_the_docstring(tmp_path, tokenizer):
    talks = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in (("x", "y"), ("z", "w"))]
    examples = read_examples(write(tmp_path / "two.jsonl", talks), tokenizer, 20)
    (inputs, targets, weights) = PackedBatches(examples, 20, 1, tokenizer.padding_id).batch(0)
    names = [
        [tokenizer.token_bytes(int(i)).decode() or tokenizer.piece(int(i)) for i in row[0]]
        for row in (inputs["token_ids"], targets)
    ]
    assert names[0] == ["<s>", "<|user|>", "x", "</s>", "<|assistant|>", "y",
                        "<s>", "<|user|>", "z", "</s>", "<|assistant|>", "w", *["<pad>"] * 8]  # fmt: skip
    assert names[1] == ["<|user|>", "x", "</s>", "<|assistant|>", "y", "</s>",
                        "<|user|>", "z", "</s>", "<|assistant|>", "w", "</s>", *["<pad>"] * 8]  # fmt: skip
    assert weights[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, *[0] * 8]
    assert inputs["positions"][0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, *[0] * 8]
    assert inputs["segment_ids"][0].tolist() == [*[1] * 6, *[2] * 6, *[0] * 8]


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_an_example_does_not_see_the_one_before_it(examples, tokenizer, position):
    config = GPTConfig(vocabulary_size=tokenizer.vocabulary_size, context_length=CONTEXT, num_layers=2, hidden_dim=32,
                       num_heads=4, position=position, initializer_range=0.3)  # fmt: skip
    model = build(config)
    inputs = batches(examples, tokenizer).batch(0)[0]
    assert inputs["segment_ids"].max() > 1
    before = np.asarray(model(inputs))
    first, others = inputs["segment_ids"] == 1, inputs["segment_ids"] > 1
    changed = np.where(first, (inputs["token_ids"] + 1) % tokenizer.vocabulary_size, inputs["token_ids"])
    after = np.asarray(model({**inputs, "token_ids": changed.astype(np.int32)}))
    np.testing.assert_array_equal(after[others], before[others])
    assert np.abs(after[first] - before[first]).max() > 1e-3


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), capacity=st.integers(40, 70))
def test_packing_holds_every_item_once_and_wastes_little(lengths, capacity):
    rows = pack(np.array(lengths), capacity)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in row) for row in rows]
    assert max(sums) <= capacity
    # Any two rows could not have been one: what was put into the later one did not fit the earlier one.
    assert all(a + b > capacity for a, b in itertools.combinations(sums, 2))


def test_items_go_where_they_fit_best():
    assert pack(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]
    assert pack(np.array([2, 7, 3, 8]), 10) == [[0, 3], [1, 2]]  # the 2 goes to the 8, where it fills the row


def test_padding_is_what_is_said(examples, tokenizer):
    made = batches(examples, tokenizer, batch_size=1)
    seen = [made.batch(number)[0]["segment_ids"] for number in range(len(made.rows))]
    assert made.padding_share == pytest.approx(np.mean(np.concatenate(seen) == 0))
    assert made.padding_share < 0.1


def test_what_happens_to_long_examples_is_a_choice(data, tokenizer):
    whole = read_examples(data, tokenizer, CONTEXT)
    lengths = whole.ends - whole.starts
    limit = int(np.median(lengths)) - 1
    with pytest.raises(InputError, match=r"talk.jsonl:\d+: \d+ tokens do not fit a context of \d+: .*cut_start"):
        read_examples(data, tokenizer, limit)
    dropped = read_examples(data, tokenizer, limit, "drop")
    assert dropped.dropped["too_long"] == sum(lengths > limit + 1) and len(dropped) == sum(lengths <= limit + 1)
    start = read_examples(data, tokenizer, limit, "cut_start")
    end = read_examples(data, tokenizer, limit, "cut_end")
    for cut in (start, end):
        assert cut.cut == sum(lengths > limit + 1)
        assert len(cut) + cut.dropped["nothing_to_learn"] == 60
        assert (cut.ends - cut.starts).max() == limit + 1
    long = int(np.argmax(lengths))
    tokens = whole.tokens[whole.starts[long] : whole.ends[long]]
    rows = [start.tokens[a:b].tolist() for a, b in zip(start.starts, start.ends, strict=True)]
    assert tokens[-limit - 1 :].tolist() in rows
    assert end.dropped["nothing_to_learn"] > 0


def test_packed_and_cloud_formats_are_read(tmp_path, data, tokenizer):
    lines = Path(data).read_bytes()
    (tmp_path / "talk.jsonl.gz").write_bytes(gzip.compress(lines))
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"messages": [json.loads(line)["messages"] for line in lines.splitlines()]})
    pyarrow.parquet.write_table(table, tmp_path / "talk.parquet")
    expected = read_examples(data, tokenizer, CONTEXT)
    for name in ("talk.jsonl.gz", "talk.parquet"):
        found = read_examples(str(tmp_path / name), tokenizer, CONTEXT)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.trained, expected.trained)


GOOD = json.dumps({"messages": talk(1)}) + "\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (GOOD + "{", "bad.jsonl, line 2: not JSON"),
        (GOOD + '{"text": "x"}', "bad.jsonl:2: no field 'messages'.*text"),
        (GOOD + '{"messages": "x"}', "bad.jsonl:2: messages must be a list of turns, not str"),
        (GOOD + '{"messages": []}', "bad.jsonl:2: the conversation has no turn of the assistant"),
        (GOOD + '{"messages": [{"role": "user"}]}', "bad.jsonl:2: message 0 of the conversation needs a content"),
        (GOOD + '{"messages": [{"role": "tool", "content": "5"}]}', "bad.jsonl:2: message 0 has the role 'tool'"),
        ("", "no example to learn from"),
    ],
)
def test_bad_data_is_one_line_that_says_where(tmp_path, tokenizer, lines, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError, match=words) as error:
        read_examples(str(path), tokenizer, CONTEXT)
    assert "\n" not in str(error.value)


def test_text_is_not_taken_for_conversations(tmp_path, tokenizer):
    (tmp_path / "book.txt").write_text("hello")
    with pytest.raises(InputError, match=r"text; records are \.jsonl"):
        read_examples(str(tmp_path / "book.txt"), tokenizer, CONTEXT)


def test_a_row_too_short_and_a_host_without_rows_are_told(examples, tokenizer):
    with pytest.raises(InputError, match="does not fit a context of 10"):
        PackedBatches(examples, 10, 4, tokenizer.padding_id)
    with pytest.raises(InputError, match="use a larger batch"):
        batches(examples, tokenizer, 2, num_hosts=3)
