import numpy as np
import pytest

from gpt_keras.data.errors import InputError
from gpt_keras.language_model import LanguageModel

from .conftest import build

PROMPTS = ["", "def parse_line(", "import os\n", "é🎉", "def read_file(table, limit=3):\n    for", "x"]


@pytest.fixture
def lm(config, tokenizer):
    return LanguageModel(build(config), tokenizer)


def by_hand(lm, prompt: str, count: int) -> str:
    """Greedy text by whole passes without any cache."""
    ids = [lm.tokenizer.begin_id, *lm.tokenizer.encode(prompt)]
    new: list[int] = []
    while len(new) < count and len(ids) < lm.config.context_length:
        row = np.zeros((1, lm.config.context_length), np.int32)  # one shape; no token sees what is behind it
        row[0, : len(ids)] = ids
        token = int(np.asarray(lm.model(row))[0, len(ids) - 1].argmax())
        if token == lm.tokenizer.end_id:
            break
        ids.append(token)
        new.append(token)
    return lm.tokenizer.decode(new)


def test_greedy_text_is_what_whole_passes_give(lm):
    for prompt in PROMPTS[:4]:
        assert lm.generate(prompt, max_new_tokens=20) == by_hand(lm, prompt, 20)


def test_a_batch_of_mixed_lengths_equals_one_at_a_time(lm):
    assert lm.generate(PROMPTS, max_new_tokens=24) == [lm.generate(p, max_new_tokens=24) for p in PROMPTS]


def test_generation_stops_where_the_context_is_full(lm):
    prompt = "x = " * 20
    room = lm.config.context_length - 1 - len(lm.tokenizer.encode(prompt))
    text = lm.generate(prompt, max_new_tokens=500)
    assert text == by_hand(lm, prompt, 500)
    assert 0 < len(lm.tokenizer.encode(text)) <= 4 * room


def test_streamed_parts_add_up(lm):
    parts = list(lm.stream(PROMPTS[1], max_new_tokens=30))
    assert len(parts) > 1
    assert "".join(parts) == lm.generate(PROMPTS[1], max_new_tokens=30)


def test_a_seed_fixes_the_text_and_another_changes_it(lm):
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_k": 100, "top_p": 0.95}
    first = lm.generate(PROMPTS[1], seed=1, **options)
    assert first == lm.generate(PROMPTS[1], seed=1, **options)
    assert first != lm.generate(PROMPTS[1], seed=2, **options)
    assert lm.generate([PROMPTS[1], *PROMPTS], seed=1, **options)[0] == first


def test_compilations_are_bounded_by_buckets(lm):
    for count in range(1, 5):
        for length in range(0, 12, 2):
            lm.generate(["x " * length] * count, max_new_tokens=3)
    # One prefill and one decoding step for each batch bucket (1, 2, 4): all these prompts share a length bucket.
    assert lm.generator.num_compilations <= 3 * 2


def test_a_prompt_too_long_is_one_clear_line(lm):
    with pytest.raises(InputError, match=r"prompt 1 has \d+ tokens, .*context of 96"):
        lm.generate(["short", "word " * 500])


def test_score_is_the_log_probability(lm):
    text = "def parse_line("
    ids = [lm.tokenizer.begin_id, *lm.tokenizer.encode(text)]
    logits = np.asarray(lm.model(np.array([ids[:-1]], np.int32)))[0].astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert lm.score(text) == pytest.approx(log_probabilities[np.arange(len(ids) - 1), ids[1:]].sum(), rel=1e-5)
