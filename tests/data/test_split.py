import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.duplicates import features
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions, _Preparation
from gpt_keras.data.split import plan_split

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=50), min_size=2, max_size=60)
RULES = st.sampled_from(["auto", "0.1", "0.5", "tail:0.1", "tail:0.5"])


def held_out(texts, rule):
    """The rule's answer for each text, all of which are kept and unlike any other."""
    digests = features(texts).digests[:, 0]
    everyone = np.ones(len(texts), bool)
    sizes = np.array([len(text.encode()) for text in texts])
    split = plan_split(digests, sizes, everyone, everyone, rule)
    return split, split.held_out(0, digests)


def divided(folder, texts, rule="auto", **kwargs):
    """The two sides of a folder with these texts."""
    source = folder / "source"
    source.mkdir()
    for number, text in enumerate(texts):
        (source / f"{number:05d}.txt").write_text(text, newline="")
    options = PreparationOptions(rule, workers=1, **kwargs)
    with _Preparation(str(source), options, folder / "work", lambda progress: None, False) as preparation:
        preparation.scan()
        preparation.decide()
        return [list(preparation.texts(side)) for side in ("train", "validation")]


@pytest.mark.parametrize("large_first", [True, False])
def test_of_two_texts_not_the_larger_one_is_held_out(large_first):
    digests = np.array([1 << 50, 2 << 50], np.uint64)
    sizes, everyone = np.array([60000, 600] if large_first else [600, 60000]), np.ones(2, bool)
    split = plan_split(digests, sizes, everyone, everyone)
    whole = sizes[split.held_out(0, digests)].sum()
    held_out = whole - split.tail_byte if split.tail_document is not None else whole
    assert 0 < held_out < 0.2 * sizes.sum()


@given(texts=TEXTS, rule=RULES)
@settings(deadline=None)
def test_a_text_is_never_on_both_sides(texts, rule):
    split, held = held_out(texts, rule)
    assert held.any()
    if split.tail_document is not None:  # which begins within a text
        if not rule.startswith("tail") and len(set(texts)) > 1:
            assert len(set(texts)) == len(texts) <= 16
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("gpt_keras.data.split._TOO_MUCH", math.inf)
                whole, held = held_out(texts, rule)
            sizes = np.array([len(text.encode()) for text in texts])
            share = 0.1 if rule == "auto" else float(rule)
            assert whole.tail_document is None and sizes[held].sum() > (share + 0.14) * sizes.sum()
    else:
        train = {text for text, out in zip(texts, held, strict=True) if not out}
        assert train
        assert not train & {text for text, out in zip(texts, held, strict=True) if out}


@given(texts=TEXTS, seed=st.randoms())
@settings(deadline=None)
def test_the_split_depends_on_the_texts_and_not_on_their_order(texts, seed):
    texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        return
    shuffled = texts[:]
    seed.shuffle(shuffled)
    (split, first), (other, second) = (held_out(t, "0.3") for t in (texts, shuffled))
    assert (split.tail_document is None) == (other.tail_document is None)
    if split.tail_document is None:  # as where they are few and one of them is most of it
        first, second = (set(np.array(t, object)[h]) for t, h in ((texts, first), (shuffled, second)))
        assert first == second


def test_about_the_asked_share_is_held_out():
    texts = [f"document {i} " * 20 for i in range(2000)]
    _, held = held_out(texts, "0.1")
    share = sum(len(text) for text, out in zip(texts, held, strict=True) if out) / sum(map(len, texts))
    assert 0.1 <= share < 0.102


def test_nothing_is_lost(tmp_path):
    texts = [f"text number {i}, about {i * 7919 % 1000} and {i * 104729 % 9973}\n" * 3 for i in range(100)]
    train, validation = divided(tmp_path, texts)
    assert sorted(train + validation) == sorted(texts)
    assert 0 < len(validation) < 20


def test_tail_holds_out_the_end(tmp_path):
    train, validation = divided(tmp_path, ["one\ntwo\nthree\nfour\n", "five\nsix\n"], "tail:0.5")
    assert "".join(train) + "".join(validation) == "one\ntwo\nthree\nfour\nfive\nsix\n"
    assert validation[-1] == "five\nsix\n"


def test_a_single_document_is_split_at_a_line(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    train, validation = divided(tmp_path, [text])
    assert train[0] + validation[0] == text
    assert train[0].endswith("\n")


@pytest.mark.parametrize("rule", ["0", "1", "-1", "tail:2", "tail", "some", "nan"])
def test_senseless_rules_are_told(rule):
    with pytest.raises(InputError, match="expected auto, a fraction"):
        PreparationOptions(rule)


def test_an_empty_corpus_is_told(tmp_path):
    with pytest.raises(InputError, match="the corpus is empty"):
        divided(tmp_path, [" \n"])
