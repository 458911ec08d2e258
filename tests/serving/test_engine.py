"""Continuous batching: whatever joins and leaves, every text is the one that `Generator` writes alone."""

import random
import threading
import time

import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.generation import Generator
from gpt_keras.sampling_options import SamplingOptions
from gpt_keras.serving.engine import BusyError, ClosedError, Engine, Job

from ..conftest import PATIENCE, build, random_ids

CONTEXT = 700
SHAPE = {"vocabulary_size": 96, "num_layers": 2, "hidden_dim": 32, "num_heads": 4, "context_length": CONTEXT}


KINDS = [
    "learned",
    pytest.param("rotary", marks=pytest.mark.slow),
    pytest.param("litert", marks=pytest.mark.tensorflow),
]


@pytest.fixture(scope="module", params=KINDS)
def generator(request, tmp_path_factory):
    style = {"position": "learned"} if request.param == "learned" else {"position": "rotary", "num_key_value_heads": 2}
    model = build(GPTConfig(**SHAPE, **style))
    if request.param != "litert":
        return Generator(model, None, frozenset({7}))
    from gpt_keras.litert.conversion import row_file
    from gpt_keras.litert.decoder import LiteRTDecoder
    from gpt_keras.litert.runtime import LiteRTFile

    file = tmp_path_factory.mktemp("litert") / "model.tflite"
    file.write_bytes(row_file(model, "float32"))
    return Generator(None, None, frozenset({7}), LiteRTDecoder(LiteRTFile(file), model.config))


@pytest.fixture
def engine(generator):
    engine = Engine(generator, slots=8, queue=200)
    engine.start()
    yield engine
    engine.close()


class Reader:
    """What one request is told."""

    def __init__(self, engine, prompt, number=0, alternatives=None, seconds=PATIENCE, **options):
        self.parts, self.ended = [], threading.Event()
        sequence = engine.generator.begin(list(prompt), SamplingOptions(**options), number)
        self.job = Job(sequence, self.hear, engine.generator.end_ids, seconds, alternatives)

    def hear(self, part):
        self.parts.append(part)
        if part.finish_reason:
            self.ended.set()

    def tokens(self):
        assert self.ended.wait(PATIENCE)
        return [part.token for part in self.parts if part.token is not None]


def prompts(count, longest=60, seed=0):
    chosen = random.Random(seed)
    return [random_ids((1, chosen.randint(1, longest)), 96, seed=1000 * seed + i)[0].tolist() for i in range(count)]


def alone(generator, prompt, **options):
    return generator.complete([prompt], SamplingOptions(**options))[0][0]


OPTIONS = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "top_k": 9, "seed": 6},
    {"temperature": 1.2, "top_p": 0.8, "min_p": 0.02, "seed": 7},
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.5, "frequency_penalty": 0.4, "temperature": 0.9},
    {"min_new_tokens": 1, "banned_tokens": (3, 4)},
    {"no_repeat_ngram_size": 2},
]


def test_no_text_depends_on_its_neighbours(generator, engine):
    """They come at odd moments, with options and lengths of their own, one of them longer than a piece."""
    asked = prompts(40) + prompts(2, longest=600, seed=1) + [random_ids((1, 640), 96, seed=3)[0].tolist()]
    options = [{"max_new_tokens": 1 + 7 * i % 50, **OPTIONS[i % len(OPTIONS)]} for i in range(len(asked))]
    readers = []
    for prompt, given in zip(asked, options, strict=True):
        readers.append(Reader(engine, prompt, **given))
        engine.submit([readers[-1].job])
        time.sleep(random.Random(len(readers)).random() * 0.01)
    for reader, prompt, given in zip(readers, asked, options, strict=True):
        expected = alone(generator, prompt, **given)
        assert reader.tokens() == expected.token_ids
        assert reader.parts[-1].finish_reason == expected.finish_reason
    assert engine.num_running == engine.num_waiting == 0


def test_log_probabilities_are_the_models_own(generator, engine):
    (prompt,) = prompts(1)
    neighbours = [Reader(engine, p, max_new_tokens=30, temperature=1.0) for p in prompts(5, seed=4)]
    reader = Reader(engine, prompt, max_new_tokens=20, alternatives=3, repetition_penalty=1.3)
    engine.submit([reader.job for reader in (*neighbours, reader)])
    expected = alone(generator, prompt, max_new_tokens=20, log_probabilities=True, repetition_penalty=1.3)
    assert reader.tokens() == expected.token_ids
    found = [part for part in reader.parts if part.token is not None]
    assert [part.log_probability for part in found] == pytest.approx(expected.log_probabilities, abs=1e-4)
    for part in found:
        values = [value for _, value in part.alternatives]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] >= part.log_probability
        assert dict(part.alternatives).get(part.token, part.log_probability) == pytest.approx(part.log_probability)


def test_a_cancelled_request_frees_its_slot_within_a_step(engine):
    readers = [Reader(engine, p, max_new_tokens=CONTEXT - 60) for p in prompts(8)]
    waiting = Reader(engine, [1, 2, 3], max_new_tokens=2)
    engine.submit([reader.job for reader in readers])
    engine.submit([waiting.job])
    wait_until(lambda: all(reader.parts for reader in readers), PATIENCE)
    assert not waiting.parts
    readers[3].job.cancel()
    told = len(readers[3].parts)
    assert waiting.tokens() and len(readers[3].parts) <= told + 1
    for reader in readers:
        reader.job.cancel()
    wait_until(lambda: engine.num_running == 0)


def test_a_short_text_does_not_wait_for_a_long_prompt(engine):
    long, short = Reader(engine, [5] * 600, max_new_tokens=90), Reader(engine, [1, 2], max_new_tokens=1)
    engine.submit([long.job])
    engine.submit([short.job])
    assert short.ended.wait(PATIENCE)
    assert len(long.tokens()) <= 90


def test_more_than_the_queue_holds_are_refused(generator):
    engine = Engine(generator, slots=2, queue=3)
    readers = [Reader(engine, p, max_new_tokens=3) for p in prompts(6)]
    engine.submit([reader.job for reader in readers[:5]])
    with pytest.raises(BusyError):
        engine.submit([readers[5].job])
    engine.start()
    assert all(reader.tokens() or reader.parts for reader in readers[:5])
    engine.close()
    with pytest.raises(ClosedError):
        engine.submit([readers[5].job])


def test_what_takes_too_long_ends_and_says_so(engine):
    reader = Reader(engine, [1, 2, 3], max_new_tokens=CONTEXT - 10, seconds=0.2)
    engine.submit([reader.job])
    assert reader.ended.wait(PATIENCE)
    assert reader.parts[-1].finish_reason in ("timeout", "stop", "length")
    late = Reader(engine, [1, 2, 3], max_new_tokens=2, seconds=-1.0)
    engine.submit([late.job])
    assert late.ended.wait(PATIENCE) and [part.finish_reason for part in late.parts] == ["timeout"]
    wait_until(lambda: engine.num_running == 0)


def test_closing_lets_what_is_there_end(generator):
    engine = Engine(generator, slots=2, queue=10)
    readers = [Reader(engine, p, max_new_tokens=30) for p in prompts(6)]
    engine.submit([reader.job for reader in readers])
    engine.start()
    engine.close()
    assert all(reader.ended.is_set() and reader.parts[-1].finish_reason in ("stop", "length") for reader in readers)


def test_a_step_that_fails_gives_its_requests_up_and_no_others(generator, monkeypatch):
    engine = Engine(generator, slots=4, queue=10)
    engine.start()
    reader = Reader(engine, [1, 2, 3], max_new_tokens=CONTEXT - 10, min_new_tokens=CONTEXT - 10)
    engine.submit([reader.job])
    wait_until(lambda: reader.parts)

    def fail(tokens):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._slots, "advance", fail)
    assert reader.ended.wait(PATIENCE) and reader.parts[-1].finish_reason == "error"
    after = Reader(engine, [4, 5, 6], max_new_tokens=9)
    engine.submit([after.job])
    assert after.tokens() == alone(generator, [4, 5, 6], max_new_tokens=9).token_ids
    engine.close()


def test_a_warm_up_that_fails_leaves_a_server_that_answers(generator, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    engine = Engine(generator, slots=4, queue=10)
    monkeypatch.setattr(engine, "warm_up", fail)
    reader = Reader(engine, [4, 5, 6], max_new_tokens=9)
    engine.submit([reader.job])
    engine.start(warm_up=True)
    assert reader.tokens() == alone(generator, [4, 5, 6], max_new_tokens=9).token_ids
    assert engine.ready.is_set()
    engine.close()


def test_after_warming_up_nothing_is_compiled(generator):
    engine = Engine(generator, slots=8)
    engine.warm_up()
    compiled = generator.decoder.num_compilations
    engine.start()
    asked = prompts(12, longest=30, seed=9)
    readers = [Reader(engine, prompt, max_new_tokens=12) for prompt in asked]
    engine.submit([reader.job for reader in readers])
    texts = [reader.tokens() for reader in readers]
    assert generator.decoder.num_compilations == compiled
    engine.close()
    assert texts == [alone(generator, prompt, max_new_tokens=12).token_ids for prompt in asked]


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
