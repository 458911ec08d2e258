"""The data that fine-tuning is tried out with: the right fields, nothing held out that was trained on, true answers."""

import ast
import functools
import hashlib
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from gpt_keras.data.conversations import encode_for_training
from gpt_keras.data.embedded import embedded_records
from gpt_keras.data.errors import InputError

SIZES = {
    "sentiment": ({"text", "label"}, 600, 120),
    "summarization": ({"document", "summary"}, 400, 80),
    "paraphrase": ({"text", "paraphrase"}, 400, 80),
    "code": ({"prompt", "code", "setup", "tests"}, 320, 40),
    "debugging": ({"name", "buggy", "fixed", "tests"}, 150, 30),
    "chat": ({"messages"}, 400, 60),
    "content": ({"instruction", "text"}, 300, 60),
    "preference": ({"prompt", "chosen", "rejected"}, 300, 60),
}


def passes(*sources: str) -> bool:
    try:
        names: dict = {}
        for source in sources:
            exec(source, names)
    except Exception:
        return False
    return True


@functools.cache
def records(task: str, seed: int = 0) -> tuple[list[dict], list[dict]]:
    return embedded_records(task, seed)


def both(task: str, seed: int = 0) -> list[dict]:
    train, valid = records(task, seed)
    return train + valid


@pytest.mark.parametrize("task", SIZES)
def test_every_task_has_so_many_records_of_its_fields(task):
    fields, train_size, valid_size = SIZES[task]
    train, valid = records(task)
    assert (len(train), len(valid)) == (train_size, valid_size)
    for record in train + valid:
        assert set(record) == fields
        for field, value in record.items():
            assert (isinstance(value, list) and value) if field in ("tests", "messages") else isinstance(value, str)
            assert value or field == "setup"


@pytest.mark.parametrize("task", SIZES)
def test_a_seed_gives_the_same_records_and_another_seed_others(task):
    assert embedded_records(task, 1) == records(task, 1)
    assert records(task, 1) != records(task, 2)


def test_another_process_has_the_same_records():
    code = (
        "import hashlib; from gpt_keras.data.embedded import embedded_records; import sys;"
        "print(hashlib.sha256(repr([embedded_records(task) for task in sys.argv[1:]]).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr([records(task) for task in SIZES]).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code, *SIZES], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == here, done.stderr


@pytest.mark.parametrize("task", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_held_out_is_trained_on(task, seed):
    train, valid = records(task, seed)
    fields = {
        "sentiment": ("text",),
        "summarization": ("document", "summary"),
        "paraphrase": ("text", "paraphrase"),
        "code": ("prompt", "code"),
        "debugging": ("name", "buggy", "fixed"),
        "chat": ("messages",),
        "content": ("instruction", "text"),
        "preference": ("prompt", "chosen"),
    }[task]
    for field in fields:
        assert not {repr(record[field]) for record in train} & {repr(record[field]) for record in valid}
    assert len({repr(record) for record in train + valid}) == len(train) + len(valid)


def test_a_paraphrase_held_out_is_not_trained_on_the_other_way_round():
    train, valid = records("paraphrase")
    assert not {record["text"] for record in train} & {record["paraphrase"] for record in valid}
    assert not {record["paraphrase"] for record in train} & {record["text"] for record in valid}
    assert all(record["text"] != record["paraphrase"] for record in train + valid)


@pytest.mark.parametrize("task", SIZES)
def test_records_are_made_in_seconds(task):
    begin = time.process_time()
    embedded_records(task, 3)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("seed", range(2))
def test_code_passes_its_tests(seed):
    for record in both("code", seed):
        assert passes(record["setup"], record["code"], "\n".join(record["tests"])), record
        assert len(record["tests"]) >= 3
        assert all(test.startswith("assert ") for test in record["tests"])
        assert record["code"].count("\n") < 25
        function = ast.parse(record["code"]).body[0]
        assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is None
        assert f"`{function.name}(" in record["prompt"]


def test_much_of_the_code_is_of_the_standard_library():
    known = {"bisect_left", "fill", "wrap", "basename", "median", "escape", "unescape", "isleap", "b64encode", "indent"}
    names = {ast.parse(record["code"]).body[0].name for record in both("code")}
    assert len(known & names) >= 3
    assert sum(record["setup"].startswith("from ") for record in both("code")) > 20


@pytest.mark.parametrize("seed", range(2))
def test_a_test_fails_for_the_bug_and_none_without_it(seed):
    for record in both("debugging", seed):
        assert passes(record["fixed"], *record["tests"]), record
        assert passes(record["buggy"]), record
        assert not passes(record["buggy"], *record["tests"]), record
        fixed, buggy = record["fixed"].splitlines(), record["buggy"].splitlines()
        assert len(buggy) - len(fixed) in (0, 1)
        assert len(Counter(buggy) - Counter(fixed)) == 1


def test_running_code_leaves_the_trace_function_alone():
    def trace(*_):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        embedded_records("code", 5)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_both_sentiments_are_as_frequent_and_every_word_can_be_learned():
    train, valid = records("sentiment")
    for side in (train, valid):
        counts = Counter(record["label"] for record in side)
        assert counts == {"positive": len(side) // 2, "negative": len(side) // 2}
    words = {word for record in train for word in record["text"].lower().split()}
    assert words.issuperset(word for record in valid for word in record["text"].lower().split())


@pytest.mark.parametrize("seed", range(3))
def test_words_alone_do_not_tell_the_sentiment(seed):
    train, valid = records("sentiment", seed)
    counts = {label: Counter() for label in ("positive", "negative")}
    for record in train:
        counts[record["label"]].update(set(re.findall(r"\w+", record["text"].lower())))

    def score(text: str) -> float:
        found = set(re.findall(r"\w+", text.lower()))
        return sum(math.log((counts["positive"][word] + 1) / (counts["negative"][word] + 1)) for word in found)

    guesses = [("positive" if score(record["text"]) > 0 else "negative") == record["label"] for record in valid]
    assert 0.5 < sum(guesses) / len(guesses) < 0.9


def test_summaries_are_about_the_facts_and_no_first_sentence():
    for record in both("summarization"):
        sentences = re.split(r"(?<=[.])\s+(?=[A-Z0-9\"])", record["document"])
        assert 4 <= len(sentences) <= 8, sentences
        assert record["summary"] not in record["document"]
        assert all(number in record["document"] for number in re.findall(r"\d+", record["summary"]))
    opens_with_background = sum(
        not set(re.findall(r"[A-Z]\w+", record["document"].split(". ")[0][1:]))
        & set(re.findall(r"[A-Z]\w+", record["summary"]))
        for record in both("summarization")
    )
    assert opens_with_background > 100


def test_texts_hold_the_keywords_and_the_points_of_the_outline():
    keywords = outlines = 0
    for record in both("content"):
        text = record["text"].lower()
        assert 3 <= len(re.findall(r"[.!?](?=\s|$)", record["text"])) <= 8, record
        found = re.search(r"words(?: occur)?: (.*)\.|Use the words (.*) in a", record["instruction"])
        if found:
            keywords += 1
            assert all(word in text for word in re.split(", | and ", found[1] or found[2])), record
        for point in re.findall(r"^\d\. (.*)", record["instruction"], re.MULTILINE):
            outlines += 1
            words = {"a", "an", "and", "the", "help", "from", "what", "means"}
            assert all(word in text for word in point.lower().replace(",", "").split() if word not in words), record
    assert keywords > 40 and outlines > 40


def test_conversations_can_be_trained_on(tokenizer):
    systems = 0
    for record in both("chat"):
        messages = record["messages"]
        roles = [message["role"] for message in messages]
        systems += roles[0] == "system"
        turns = roles[roles[0] == "system" :]
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns
        assert "{" not in "".join(message["content"] for message in messages)
        _, trained = encode_for_training(tokenizer, messages)
        assert any(trained)
    assert 50 < systems < 300


def test_sums_in_conversations_are_right():
    checked = 0
    for record in both("chat"):
        for message in record["messages"]:
            found = re.fullmatch(r"(\d+) (plus|minus|times) (\d+) is (\d+)\.", message["content"])
            if message["role"] == "assistant" and found:
                first, second = int(found[1]), int(found[3])
                result = {"plus": first + second, "minus": first - second, "times": first * second}[found[2]]
                assert result == int(found[4])
                checked += 1
    assert checked > 20


def test_preferred_answers_differ_from_rejected_ones():
    assert all(record["chosen"] != record["rejected"] for record in both("preference"))


def test_a_task_without_data_is_an_error_that_names_those_with():
    with pytest.raises(InputError, match="no data for the task 'poetry'; there is for sentiment, summarization"):
        embedded_records("poetry")


def test_making_records_needs_no_keras():
    code = (
        "import sys; from gpt_keras.data.embedded import embedded_records; embedded_records('debugging');"
        "assert not {'keras', 'tensorflow', 'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
