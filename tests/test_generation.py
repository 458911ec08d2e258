"""Generation against whole passes by hand, and against transformers."""

import numpy as np
import pytest

from gpt_keras.compilation import compile_for
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.folder import save_folder
from gpt_keras.generation import Generator
from gpt_keras.language_model import LanguageModel
from gpt_keras.sampling_options import SamplingOptions

from .conftest import build, random_ids

PROMPTS = ["", "def parse_line(", "import os\n", "é🎉", "def read_file(table, limit=3):\n    for", "x"]


@pytest.fixture(scope="module")
def lm(tokenizer):
    """One model for all tests, so that what is compiled is used again."""
    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, initializer_range=0.3)
    return LanguageModel(build(config), tokenizer)


def another(lm, end_ids: frozenset[int]) -> Generator:
    """A generator that other tokens end, with what is compiled already."""
    return Generator(None, lm.tokenizer, end_ids, lm.decoder)


@pytest.fixture(scope="module")
def theirs(lm, tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("model")
    save_folder(lm.model, lm.tokenizer, folder / "model")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def next_token(lm):
    """The most probable token behind some others, by a whole pass without any cache."""
    forward = compile_for(lm.model, lm.model.__call__)

    def after(ids) -> int:
        row = np.zeros((1, lm.config.context_length), np.int32)  # one shape; no token sees what is behind it
        row[0, : len(ids)] = ids
        return int(np.asarray(forward(row))[0, len(ids) - 1].argmax())

    return after


def by_hand(lm, next_token, prompt: str, count: int) -> list[int]:
    """Greedy tokens by whole passes."""
    ids = lm.tokenizer.encode_prompt(prompt)
    new: list[int] = []
    while len(new) < count and len(ids) <= lm.config.context_length:
        token = next_token(ids)
        if token in lm.tokenizer.end_ids:
            break
        ids.append(token)
        new.append(token)
    return new


def test_greedy_text_is_what_whole_passes_give(lm, next_token):
    for prompt in PROMPTS[:4]:
        assert lm.generate(prompt, max_new_tokens=20) == lm.tokenizer.continuation(by_hand(lm, next_token, prompt, 20))


def test_a_batch_of_mixed_lengths_equals_one_at_a_time(lm):
    assert lm.generate(PROMPTS, max_new_tokens=24) == [lm.generate(p, max_new_tokens=24) for p in PROMPTS]


def test_large_batches_equal_one_at_a_time(lm):
    prompts = [f"def f{n}(" + "x, " * (n % 7) for n in range(64)]
    together = lm.generate(prompts, max_new_tokens=6)
    assert [together[n] for n in (0, 13, 63)] == [lm.generate(prompts[n], max_new_tokens=6) for n in (0, 13, 63)]


def test_without_a_length_generation_stops_where_the_context_is_full(lm):
    ids = [int(i) for i in random_ids((lm.config.context_length - 8,), 512)]
    ((completion,),) = another(lm, frozenset()).complete([ids])
    assert len(completion.token_ids) == 9  # the last one is never read
    assert completion.finish_reason == "length"


def test_a_generation_longer_than_the_context_is_one_clear_line(lm):
    with pytest.raises(InputError, match=r"prompt 0 has \d+ tokens and leaves room for \d+ .*context of 96, not for"):
        lm.generate("x = ", max_new_tokens=500)


def test_sliding_goes_on_with_the_newer_half_of_the_context(lm, next_token):
    generator = another(lm, frozenset())
    context, ids = lm.config.context_length, lm.tokenizer.encode_prompt("def parse(")
    options = SamplingOptions(max_new_tokens=150, sliding=True)
    ((completion,),) = generator.complete([ids], options)
    assert len(completion.token_ids) == 150
    # By hand: whole passes over a window that loses its older half when it is full.
    window, expected = list(ids), []
    while len(expected) < 150:
        if len(window) == context + 1:
            window = [ids[0], *window[-(context // 2) :][1:]]
        expected.append(next_token(window))
        window.append(expected[-1])
    assert completion.token_ids == expected
    assert len(lm.generate("word " * 200, max_new_tokens=4, sliding=True)) > 0


def test_a_text_that_slides_is_the_same_beside_others(lm):
    """They fill the context at different times, one of them before its first token."""
    generator, options = another(lm, frozenset()), SamplingOptions(max_new_tokens=130, sliding=True)
    prompts = [[1, *random_ids((length,), 512, seed=length).tolist()] for length in (3, 60, 200)]
    together = generator.complete(prompts, options)
    assert together == [generator.complete([prompt], options)[0] for prompt in prompts]


def test_streamed_parts_add_up(lm):
    parts = list(lm.stream(PROMPTS[1], max_new_tokens=30))
    assert len(parts) > 1
    assert "".join(parts) == lm.generate(PROMPTS[1], max_new_tokens=30)


def test_a_seed_fixes_each_row_whatever_else_is_in_the_batch(lm):
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_k": 100, "top_p": 0.95, "min_p": 0.01}
    first = lm.generate(PROMPTS[1], seed=1, **options)
    assert first == lm.generate(PROMPTS[1], seed=1, **options)
    assert first != lm.generate(PROMPTS[1], seed=2, **options)
    assert lm.generate(PROMPTS, seed=1, **options)[1] == first


def test_several_sequences_of_a_prompt_differ_and_repeat(lm):
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    several = lm.generate(PROMPTS[:2], num_sequences=4, **options)
    assert [len(texts) for texts in several] == [4, 4]
    assert len(set(several[1])) == 4
    assert several[1][:2] == lm.generate(PROMPTS[1], num_sequences=2, **options)
    assert several[1] == lm.generate([PROMPTS[1]] * 4, **options)  # the same prompt again is the next sequence


def test_what_is_drawn_follows_the_model_s_probabilities(lm):
    """Chi-square of the first token over many sequences."""
    prompt, count = PROMPTS[1], 2048
    ids = lm.tokenizer.encode_prompt(prompt)
    logits = np.asarray(lm.model(np.array([ids], np.int32)))[0, -1].astype(np.float64) / 2.0
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    generator = another(lm, frozenset())
    found = generator.complete([ids], SamplingOptions(max_new_tokens=1, temperature=2.0, num_sequences=count, seed=11))
    observed = np.bincount([completion.token_ids[0] for completion in found[0]], minlength=512)
    kept = expected * count >= 5
    statistic = ((observed[kept] - expected[kept] * count) ** 2 / (expected[kept] * count)).sum()
    assert kept.sum() > 10
    assert statistic < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_log_probabilities_are_the_model_s_own(lm):
    ids = lm.tokenizer.encode_prompt(PROMPTS[1])
    options = {"max_new_tokens": 10, "temperature": 0.7, "repetition_penalty": 1.3, "log_probabilities": True}
    ((completion,),) = lm.complete([ids], **options)
    row = np.array([[*ids, *completion.token_ids]], np.int32)
    logits = np.asarray(lm.model(row))[0].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(len(ids) - 1, row.shape[1] - 1)
    np.testing.assert_allclose(completion.log_probabilities, logits[places, completion.token_ids], atol=1e-3)


@pytest.mark.parametrize("cut", range(1, 12, 3))
def test_a_stop_string_ends_the_text_wherever_tokens_are_cut(lm, cut):
    whole = lm.generate(PROMPTS[4], max_new_tokens=30)
    stop = whole[cut : cut + 5]
    assert lm.generate(PROMPTS[4], max_new_tokens=30, stop=["never there", stop]) == whole[: whole.index(stop)]
    assert "".join(lm.stream(PROMPTS[4], max_new_tokens=30, stop=[stop])) == whole[: whole.index(stop)]
    ((completion,),) = lm.complete([PROMPTS[4]], max_new_tokens=30, stop=stop)
    assert completion.finish_reason == "stop"


def test_log_probabilities_of_beams_are_the_models_own(lm):
    """Whatever rules the beams were chosen by."""
    ids = lm.tokenizer.encode_prompt(PROMPTS[1])
    options = SamplingOptions(num_beams=3, repetition_penalty=0.2, max_new_tokens=8, log_probabilities=True)
    ((found,),) = another(lm, frozenset()).complete([ids], options)
    logits = np.asarray(lm.model(np.array([ids + found.token_ids[:-1]], np.int32)), np.float64)[0, len(ids) - 1 :]
    logits -= logits.max(-1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert found.log_probabilities == pytest.approx(expected[np.arange(8), found.token_ids], abs=1e-3)
    assert 8 * found.score != pytest.approx(sum(found.log_probabilities), abs=0.1)  # the penalty has met some


def test_text_held_back_for_a_stop_string_that_does_not_come_is_not_lost(lm):
    whole = lm.generate(PROMPTS[1], max_new_tokens=20)
    assert lm.generate(PROMPTS[1], max_new_tokens=20, stop=[whole[-3:] + "\0"]) == whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 2.0, "num_sequences": 2},
        {"num_beams": 2, "length_penalty": -1.0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers(lm, next_token, theirs, options):
    import torch

    names = {"min_new_tokens": "min_new_tokens", "num_sequences": "num_return_sequences"}
    given = {names.get(name, name): value for name, value in options.items()}
    for prompt in PROMPTS[1:4]:
        ids = lm.tokenizer.encode_prompt(prompt)
        # An end token that comes up often, so that rows really end.
        end = by_hand(lm, next_token, prompt, 8)[7]
        generator = another(lm, frozenset({end}))
        with torch.no_grad():
            rows = theirs.generate(
                torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=end, pad_token_id=0, **given
            )
        expected = [row[len(ids) :].tolist() for row in rows]
        expected = [row[: row.index(end)] if end in row else row for row in expected]
        (found,) = generator.complete([ids], SamplingOptions(max_new_tokens=16, **options))
        assert [completion.token_ids for completion in found] == expected


def test_banned_and_allowed_tokens(lm):
    ids = lm.tokenizer.encode_prompt(PROMPTS[1])
    ((first,),) = lm.complete([ids], max_new_tokens=8)
    banned = list(set(first.token_ids))
    ((other,),) = lm.complete([ids], max_new_tokens=8, banned_tokens=banned)
    assert other.token_ids and not set(other.token_ids) & set(banned)
    ((only,),) = lm.complete([ids], max_new_tokens=8, allowed_tokens=banned, temperature=1.0)
    assert set(only.token_ids) <= set(banned)


def test_presence_and_frequency_penalties_change_what_is_said_twice(lm):
    ids = lm.tokenizer.encode_prompt(PROMPTS[1])
    for name in ("presence_penalty", "frequency_penalty"):
        ((completion,),) = lm.complete([ids], max_new_tokens=30, **{name: 1e6})
        assert len(set(completion.token_ids)) == len(completion.token_ids)


def test_compilations_are_bounded_by_buckets(lm):
    generator = Generator(lm.model, lm.tokenizer)
    for count in range(1, 5):
        for length in range(0, 7, 2):
            generator.generate(["x " * length] * count, SamplingOptions(max_new_tokens=3))
    # One prefill and one decoding step for each batch bucket (1, 2, 4): all these prompts share a length bucket.
    assert generator.num_compilations <= 3 * 2


def test_a_model_without_tokenizer_continues_token_ids(lm, next_token):
    alone = LanguageModel(lm.model, None)
    ids = lm.tokenizer.encode_prompt(PROMPTS[1])
    ((completion,),) = alone.complete([ids], max_new_tokens=12)
    assert completion.token_ids[:3] == by_hand(lm, next_token, PROMPTS[1], 3)
    assert completion.text == ""
    with pytest.raises(InputError, match="no tokenizer"):
        alone.generate("text")


def test_the_fewest_tokens_may_be_more_than_the_most_by_default(lm):
    (text,) = lm.complete(["x"], min_new_tokens=130, sliding=True)[0]
    assert len(text.token_ids) >= 130
    with pytest.raises(InputError, match=r"room for 9\d in .*, not for min_new_tokens=130"):
        lm.generate(["x"], min_new_tokens=130)


def test_an_end_token_that_the_model_does_not_have_never_comes(lm):
    size = lm.config.vocabulary_size
    generator = Generator(lm.model, lm.tokenizer, frozenset({lm.tokenizer.end_id, size + 1, -1}))
    assert generator.generate(["x"], SamplingOptions(regex="ab?", max_new_tokens=8))[0] in ("a", "ab")
    generator.generate(["x"], SamplingOptions(min_new_tokens=2, max_new_tokens=3))


def test_a_prompt_too_long_is_one_clear_line(lm):
    with pytest.raises(InputError, match=r"prompt 1 has \d+ tokens, .*context of 96"):
        lm.generate(["short", "word " * 500])


def test_token_ids_outside_the_vocabulary_are_named(lm):
    with pytest.raises(InputError, match="prompt 0 has token id 512"):
        lm.complete([[1, 512]])


def test_score_is_the_log_probability(lm):
    text = "def parse_line("
    ids = [lm.tokenizer.begin_id, *lm.tokenizer.encode(text)]
    logits = np.asarray(lm.model(np.array([ids[:-1]], np.int32)))[0].astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert lm.score(text) == pytest.approx(log_probabilities[np.arange(len(ids) - 1), ids[1:]].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2, "temperature": 1.0}, "beam search takes the most probable"),
        ({"num_beams": 2, "num_sequences": 3}, "num_sequences=3 must be at most"),
        ({"num_beams": 2, "stop": ["x"]}, "neither stop strings"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens=9"),
        ({"regex": "a", "json_schema": "{}"}, "exclude each other"),
        ({"stop": [""]}, "no empty string"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, message):
    with pytest.raises(InputError, match=message):
        SamplingOptions(**options)


@pytest.mark.tensorflow
def test_a_model_that_is_let_go_takes_its_graphs_with_it(config):
    import gc

    def graphs() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    before = graphs()
    Generator(build(config), None).complete([[1, 2]], SamplingOptions(max_new_tokens=3))
    assert graphs() <= before
