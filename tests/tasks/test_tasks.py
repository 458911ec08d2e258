"""Every task: what it learns from, what it makes of perfect and of useless answers, how a new one is found."""

import pickle

import numpy as np
import pytest

from gpt_keras.data.conversations import encode_for_training
from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import examples_of
from gpt_keras.tasks import find_task, task_names
from gpt_keras.tasks.code import program
from gpt_keras.tasks.task import Outputs

ADD = {
    "prompt": "Write a function add that adds two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "setup": "",
    "tests": ["assert add(1, 2) == 3", "assert add(0, -1) == -1"],
}
RECORDS = {
    "chat": [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}] * 3,
    "code": [ADD] * 3,
    "content": [{"instruction": "Write about a river and a bridge.", "text": "The river ran under the bridge."}] * 3,
    "debugging": [{"name": "add", "buggy": ADD["code"].replace("+", "-"), "fixed": ADD["code"], "tests": ADD["tests"]}]
    * 3,
    "paraphrase": [
        {"text": f"The cat number {i} sat on the mat.", "paraphrase": f"On the mat sat cat {i}."} for i in "12"
    ],
    "sentiment": [{"text": "a fine film", "label": "positive"}, {"text": "a dull film", "label": "negative"}],
    "summarization": [{"document": "It rained. The game was off.", "summary": "Rain stopped the game."}] * 3,
}


def values(task, records, outputs):
    return {metric.name: metric.value for metric in task.metrics(records, outputs)}


def test_there_is_a_task_for_every_application():
    assert set(RECORDS) <= set(task_names())


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_becomes_a_conversation_to_learn_from(name, tokenizer):
    task, records = find_task(name), RECORDS[name]
    for record in records:
        messages = task.messages(record)
        assert messages[-1]["role"] == "assistant" and task.prompt(record) == messages[:-1]
        ids, trained = encode_for_training(tokenizer, messages)
        answer = tokenizer.decode([i for i, says in zip(ids, trained, strict=True) if says])
        assert answer == messages[-1]["content"]
    assert len(examples_of(records, tokenizer, 512, form=task)) == len(records)


@pytest.mark.parametrize("name", RECORDS)
def test_a_task_and_its_form_go_to_other_processes_by_name(name):
    assert pickle.loads(pickle.dumps(find_task(name))) is find_task(name)


@pytest.mark.parametrize(
    ("name", "perfect"),
    [
        ("code", {"pass@1": 100.0}),
        ("debugging", {"pass@1": 100.0}),
        ("paraphrase", {"chrf": 100.0, "bleu": 100.0}),
        ("sentiment", {"written_accuracy": 1.0, "without_label": 0.0}),
        ("summarization", {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}),
    ],
)
def test_the_references_are_perfect_and_nonsense_is_not(name, perfect):
    task, records = find_task(name), RECORDS[name]
    found = values(task, records, Outputs([[task.messages(record)[-1]["content"]] for record in records]))
    assert {key: found[key] for key in perfect} == pytest.approx(perfect)
    worse = values(task, records, Outputs([["zzz qqq"]] * len(records)))
    assert all(worse[key] != pytest.approx(value) for key, value in perfect.items())


def test_baselines_are_what_they_say():
    def of(name, training=()):
        task = find_task(name)
        found = task.baselines(RECORDS[name], list(training))
        return {system: values(task, RECORDS[name], outputs) for system, outputs in found.items()}

    assert of("debugging")["the buggy program"]["pass@1"] == 0.0
    assert of("debugging")["the references"]["pass@1"] == of("code")["the references"]["pass@1"] == 100.0
    assert of("paraphrase")["copy of the text"]["bleu_to_source"] == pytest.approx(100.0)
    assert of("summarization")["LEAD-1"]["rouge1"] < 100.0
    sentiment = of("sentiment", RECORDS["sentiment"] * 3)
    assert sentiment["majority"]["accuracy"] == 0.5
    assert sentiment["TF-IDF, logistic regression"]["accuracy"] == 1.0


def test_a_result_that_json_wrote_down_is_the_same_result():
    fixed = "def f(x):\n    return [(x, 0.1 + 0.2)], 'a'"
    tests = {
        "assert f(1) == [[[1, 0.3]], 'a']": True,
        "assert f(1) == ([(1, 0.3)], 'a')": True,
        "assert f(1) == [[[1, 0.31]], 'a']": False,
        "assert f(1) == [[[2, 0.3]], 'a']": False,
        "assert f(1) == [[[1, 0.3]]]": False,
        "assert f(1) == [[[1, 0.3]], 'b']": False,
        "assert len(f(1)) == 2 and f(1)": True,
        "for i in range(3):\n    assert i < 3": True,
    }
    task = find_task("debugging")
    for test, passes in tests.items():
        record = {"name": "f", "buggy": "x", "fixed": fixed, "tests": [test]}
        assert values(task, [record], Outputs([[fixed]]))["pass@1"] == 100.0 * passes, test


def test_tests_may_be_one_text():
    task, tests = find_task("code"), "\n".join(ADD["tests"])
    record = {**ADD, "tests": tests}
    assert tests in task.prompt(record)[0]["content"]
    assert values(task, [record], Outputs([[ADD["code"]]]))["pass@1"] == 100.0
    assert values(task, [record], Outputs([[ADD["code"].replace("+", "-")]]))["pass@1"] == 0.0


def test_sentiment_by_probabilities_and_by_words():
    task, records = find_task("sentiment"), RECORDS["sentiment"]
    assert task.choices(records) == [["negative", "positive"]] * len(records)
    sure = np.array([[0.1, 0.9], [0.8, 0.2]])
    found = values(task, records, Outputs([["I think: Positive."], ["positively unclear"]], sure))
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["calibration_error"] == pytest.approx(0.15)
    assert found["written_accuracy"] == 0.5 and found["without_label"] == 0.5


def test_a_program_is_found_in_an_answer():
    assert program("Sure!\n```python\nx = 1\n```\nThat is it.\n```\ny\n```") == "x = 1"
    assert program("```\nx = 1") == "x = 1"
    assert program("x = 1") == "x = 1"
    assert program("```python3\nx = 1\n```\nDone.") == "x = 1"
    assert program("```Python\r\nx = 1\r\n```\r\n") == "x = 1"
    assert program("```bash\npip install x\n```\n\n```python\nx = 1\n```") == "x = 1"


def test_what_runs_before_a_program_may_be_a_list():
    task, record = find_task("code"), {**ADD, "setup": ["import math", "one = math.cos(0)"]}
    record["code"] = "def add(a, b):\n    return a + b + one - 1"
    assert values(task, [record], Outputs([[record["code"]]]))["pass@1"] == 100.0
    assert values(task, [{**ADD, "setup": None}], Outputs([[ADD["code"]]]))["pass@1"] == 100.0


def test_an_instruction_without_long_words_does_not_count_for_coverage():
    records = [{"instruction": text, "text": ""} for text in ("Write about lighthouses", "Say hi")]
    (both, one) = (values(find_task("content"), r, Outputs([["lighthouses"]] * len(r))) for r in (records, records[:1]))
    assert both["coverage"] == one["coverage"] > 0


def test_of_a_preference_the_answers_alone_are_learned(tokenizer):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    for conversation in find_task("preference").conversations({"prompt": turns, "chosen": "yes", "rejected": "no"}):
        assert [turn.get("weight", 1) for turn in conversation if turn["role"] == "assistant"] == [0, 1]


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("sentiment", {"text": "", "label": "a"}, "'text' must hold text, not nothing"),
        ("sentiment", {"text": "a", "label": None}, "'label' must hold a label"),
        ("summarization", {"document": 3, "summary": "a"}, "'document' must hold text, not int"),
        ("code", {**ADD, "tests": [True]}, "'tests' must hold a list"),
        ("chat", {"messages": "hi"}, "'messages' must hold a list of turns"),
    ],
)
def test_a_record_that_is_not_the_tasks_is_one_line(name, record, message):
    with pytest.raises(InputError, match=message):
        find_task(name).messages(record)


OWN = '''
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.task import Task, turns


class Rhyme(Task):
    """{line, rhyme}."""

    fields = Fields(("line", "rhyme"))

    def messages(self, record):
        return turns(record["line"], record["rhyme"])

    def metrics(self, records, outputs):
        return [metrics.accuracy("same", [r["rhyme"] for r in records], outputs.first_answers)]


TASK = Rhyme()
'''


def test_a_task_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "rhyme.py").write_text(OWN)
    task = find_task(str(tmp_path / "rhyme.py"))
    records = [{"line": "cat", "rhyme": "hat"}]
    assert values(task, records, Outputs([["hat"]])) == {"same": 1.0}
    assert pickle.loads(pickle.dumps(task)).messages(records[0]) == task.messages(records[0])


def test_what_is_no_task_is_one_line(tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    for name, message in [
        ("sentimnt", "there is no task sentimnt; tasks are .*chat, code"),
        ("metrics", "there is no task metrics"),
        (str(tmp_path / "empty.py"), "defines no TASK"),
        (str(tmp_path / "broken.py"), "cannot be loaded .ZeroDivisionError"),
        (str(tmp_path / "missing.py"), "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            find_task(name)


def test_of_several_paraphrases_the_one_that_says_all_in_another_order_comes_first():
    text = "The two ships had sunk on Friday, the captain said in a statement to the press."
    turned = "The captain said in a statement to the press the two ships had sunk on Friday."
    copy, shorter, another = text, "The two ships had sunk.", "It rained all day in the north."
    task = find_task("paraphrase")
    answers = task.best_first({"text": text}, [copy, another, shorter, turned])
    assert answers[0] == turned and answers[-1] == another
    assert sorted(answers) == sorted([copy, another, shorter, turned])


def test_other_tasks_leave_answers_as_they_are():
    assert find_task("code").best_first({}, ["b", "a"]) == ["b", "a"]
