import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.sources import Document
from gpt_keras.data.split import plan_split

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=50), min_size=2, max_size=60)
RULES = st.sampled_from(["auto", "0.1", "0.5", "tail:0.1", "tail:0.5"])


def documents(texts):
    return [Document(str(number), text) for number, text in enumerate(texts)]


def divided(texts, rule):
    pairs = list(plan_split(documents(texts), rule).divide(documents(texts)))
    return [d.text for out, d in pairs if not out], [d.text for out, d in pairs if out]


@given(texts=TEXTS, rule=RULES)
@settings(deadline=None)
def test_nothing_is_lost_and_hashing_never_trains_on_a_held_out_text(texts, rule):
    train, held_out = divided(texts, rule)
    assert sorted("".join(train + held_out)) == sorted("".join(texts))
    assert held_out
    if len(set(texts)) > 1 and not rule.startswith("tail"):
        assert train
        assert not set(train) & set(held_out)


@given(texts=TEXTS, seed=st.randoms())
@settings(deadline=None)
def test_the_split_depends_on_the_texts_and_not_on_their_order(texts, seed):
    texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        return
    shuffled = texts[:]
    seed.shuffle(shuffled)
    assert set(divided(texts, "0.3")[1]) == set(divided(shuffled, "0.3")[1])


def test_about_the_asked_share_is_held_out():
    texts = [f"document {i} " * 20 for i in range(2000)]
    _, held_out = divided(texts, "0.1")
    share = sum(map(len, held_out)) / sum(map(len, texts))
    assert 0.1 <= share < 0.102


def test_tail_holds_out_the_end():
    train, held_out = divided(["one\ntwo\nthree\nfour\n", "five\nsix\n"], "tail:0.5")
    assert "".join(train) + "".join(held_out) == "one\ntwo\nthree\nfour\nfive\nsix\n"
    assert held_out[-1] == "five\nsix\n"


def test_a_single_document_is_split_at_a_line():
    text = "".join(f"line {i}\n" for i in range(100))
    train, held_out = divided([text], "auto")
    assert train[0] + held_out[0] == text
    assert train[0].endswith("\n")


@pytest.mark.parametrize("rule", ["0", "1", "-1", "tail:2", "tail", "some", "nan"])
def test_senseless_rules_are_told(rule):
    with pytest.raises(InputError, match="expected auto, a fraction"):
        plan_split(documents(["a", "b"]), rule)


def test_an_empty_corpus_is_told():
    with pytest.raises(InputError, match="the corpus is empty"):
        plan_split([], "auto")
