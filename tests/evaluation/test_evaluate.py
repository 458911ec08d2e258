"""`evaluate`: its figures computed again in other ways, and what it says when something is wrong."""

import json
import math
import random

import numpy as np
import pytest

import gpt_keras
from gpt_keras.config import GPTConfig
from gpt_keras.data.conversations import encode_for_training
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.evaluate import EvaluateOptions, cli, main
from gpt_keras.evaluation import answers, sandbox
from gpt_keras.evaluation.answers import PLAIN_TEMPLATE, Answerer, text_likelihoods
from gpt_keras.evaluation.scoring import Scorer
from gpt_keras.folder import save_folder
from gpt_keras.tasks import find_task

from ..conftest import build, program, slow_but
from ..data.test_hub_tokenizer import write_byte_level

SENTIMENT = [
    {"text": f"{program(number)[:40]}", "label": "positive" if number % 3 else "negative"} for number in range(9)
]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, initializer_range=0.1)
    path = tmp_path_factory.mktemp("evaluated") / "model"
    save_folder(build(config), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return gpt_keras.load(folder, dtype="float32")


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def probabilities(lm, ids):
    """The model's own, one row at a time, with NumPy's softmax."""
    logits = np.asarray(lm.model(np.array([ids[:-1]], np.int32)), np.float64)[0]
    logits -= logits.max(-1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return table[np.arange(len(ids) - 1), ids[1:]]


def test_labels_and_answers_have_the_probabilities_that_the_model_gives_them(lm):
    tokenizer = lm.tokenizer
    outputs = Answerer(lm, find_task("sentiment"), batch_size=4).outputs(SENTIMENT, generate=False)
    for row, record in enumerate(SENTIMENT):
        logs = []
        for label in ("negative", "positive"):
            prompt = tokenizer.encode(f"What is the sentiment of this text?\n\n{record['text'].strip()}\n\n{label}")
            ids = [tokenizer.begin_id, *prompt, tokenizer.end_id]
            count = len(tokenizer.encode(label)) + 1
            logs.append(probabilities(lm, ids)[-count:].sum())
        odds = np.exp(logs - np.max(logs))
        np.testing.assert_allclose(outputs.choice_probabilities[row], odds / odds.sum(), atol=1e-4)
        assert outputs.nats[row] == pytest.approx(-logs[record["label"] == "positive"], rel=1e-4)
        assert outputs.tokens[row] == len(tokenizer.encode(record["label"])) + 1


def test_padding_that_the_model_does_not_have_changes_no_score(lm, tmp_path):
    write_byte_level(tmp_path, pad_token="[PAD]")
    tokenizer = Tokenizer.load(tmp_path)
    model = build(GPTConfig.from_preset("nano", vocabulary_size=400, context_length=96, initializer_range=0.1))
    padded = gpt_keras.LanguageModel(model, tokenizer)
    assert tokenizer.padding_id >= model.config.vocabulary_size
    pairs = [([1], [40, 50, 60]), ([2, 3], [41])]
    alone = [Scorer(model, 0).score([pair])[0].nats for pair in pairs]
    found = [scored.nats for scored in Scorer(model, padded.padding_id).score(pairs)]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_answers_are_what_generate_gives(lm):
    answerer = Answerer(lm, find_task("sentiment"), batch_size=4)
    answers = answerer.outputs(SENTIMENT).answers
    for record, (answer,) in zip(SENTIMENT, answers, strict=True):
        prompt = f"What is the sentiment of this text?\n\n{record['text'].strip()}\n\n"
        assert answer == lm.generate(prompt, max_new_tokens=8).strip()


def test_a_text_is_scored_whole_in_windows_of_the_context(lm):
    texts = [program(1), "short", program(2)]
    nats, tokens, size = text_likelihoods(lm, texts, batch_size=3)
    np.testing.assert_allclose(nats, [-total for total in lm.score(texts)], rtol=1e-4)
    assert tokens.tolist() == [len(lm.tokenizer.encode(text)) for text in texts]
    assert size.tolist() == [len(text.encode()) for text in texts]


def test_every_turn_of_the_assistant_counts(lm):
    turns = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two words")]
    messages = [{"role": role, "content": content} for role, content in turns]
    outputs = Answerer(lm, find_task("chat")).outputs([{"messages": messages}], generate=False)
    assert outputs.tokens[0] == sum(len(lm.tokenizer.encode(text)) + 1 for text in ("one", "two words"))


@pytest.mark.slow
def test_all_turns_in_one_pass_are_as_probable_as_one_by_one(lm, monkeypatch):
    """Conversations of different lengths share rows of different widths; one is too long for the context."""
    monkeypatch.setattr(answers, "PACKED_ROW", 32)
    draw = random.Random(0)
    records = []
    for length in (2, 6, 4, 2, 10, 8):
        words = [
            " ".join(draw.choice(["one", "two", "the tree"]) for _ in range(draw.randint(1, 3))) for _ in range(length)
        ]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]
        records.append({"messages": messages})
    records.append({"messages": [{"role": "user", "content": program(1)}, *records[1]["messages"][1:]]})
    answerer = Answerer(lm, find_task("chat"), batch_size=2)
    outputs = answerer.outputs(records, generate=False)
    room = lm.config.context_length
    for record, nats, tokens in zip(records, outputs.nats, outputs.tokens, strict=True):
        ids, trained = encode_for_training(lm.tokenizer, record["messages"], answerer.template)
        total = 0.0
        for place in np.flatnonzero(trained):
            stop = next((i for i in range(place, len(ids)) if not trained[i]), len(ids))
            total -= probabilities(lm, ids[max(0, stop - room - 1) : place + 1])[-1]
        assert tokens == sum(trained) and nats == pytest.approx(total, rel=1e-4)
    assert answerer.cut > 0 and len(ids) > room + 1


def test_what_does_not_fit_loses_its_beginning_and_is_counted(lm):
    long = [{"document": program(3) * 3, "summary": "all of it"}, {"document": "a b", "summary": "c"}]
    answerer = Answerer(lm, find_task("summarization"))
    outputs = answerer.outputs(long)
    assert answerer.cut == 2 and np.isfinite(outputs.nats).all() and len(outputs.answers) == 2


def test_the_command_measures_models_and_baselines_and_writes_answers(folder, tmp_path, capsys):
    data = write(tmp_path / "valid.jsonl", [{"sentence": r["text"], "label": r["label"]} for r in SENTIMENT])
    train = write(tmp_path / "train.jsonl", [{"sentence": r["text"], "label": r["label"]} for r in SENTIMENT])
    output = tmp_path / "answers.jsonl"
    options = EvaluateOptions(
        str(folder), "sentiment", [data], map=["text=sentence"], train=[train], output=output, json=True, batch_size=4
    )
    main(options)
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(said["systems"]) == {str(folder), "majority", "TF-IDF, logistic regression"}
    assert said["metrics"] == said["systems"][str(folder)]
    assert said["systems"]["majority"]["accuracy"] == pytest.approx(6 / 9)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    best = [("negative", "positive")[int(np.argmax(line["choice_probabilities"]))] for line in lines]
    right = np.mean([a == line["record"]["label"] for a, line in zip(best, lines, strict=True)])
    assert said["metrics"]["accuracy"] == pytest.approx(right)
    nats, tokens = (sum(line[name] for line in lines) for name in ("nats", "tokens"))
    assert said["metrics"]["answer_perplexity"] == pytest.approx(math.exp(nats / tokens))
    for name, (low, high) in said["intervals"].items():
        assert low <= said["metrics"][name] <= high, name


def test_what_would_fail_at_the_end_is_refused_at_the_start(tmp_path, monkeypatch):
    """Before the model, of which there is none, is opened."""
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    places = (
        (tmp_path, "is a folder"),
        (file / "answers.jsonl", "file/answers.jsonl: Not a directory"),
        (tmp_path / "nowhere" / "answers.jsonl", "nowhere/answers.jsonl: No such file"),
        (tmp_path / ("long" * 60), "File name too long"),
    )
    for output, words in places:
        with pytest.raises(InputError, match=words):
            main(EvaluateOptions("none", "sentiment", output=output))
    with pytest.raises(InputError, match="none"):
        main(EvaluateOptions("none", "sentiment", output=tmp_path / "new" / "answers.jsonl"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nowhere"}
    monkeypatch.setattr(sandbox, "isolation", lambda: sandbox.Isolation(frozenset()))
    for task in ("code", "debugging"):
        monkeypatch.setattr(find_task(task), "_unsafe", False)  # and again behind this test
        with pytest.raises(InputError, match="--unsafe"):
            main(EvaluateOptions("none", task))
        with pytest.raises(InputError, match="none"):
            main(EvaluateOptions("none", task, unsafe=True))


@pytest.mark.parametrize(("text", "labels"), [("good", ["positive"] * 2), ("!", ["positive", "negative"])])
def test_a_baseline_that_learns_nothing_is_refused_before_the_model_is_opened(text, labels, tmp_path):
    data = write(tmp_path / "data.jsonl", SENTIMENT)
    train = write(tmp_path / "train.jsonl", [{"text": text, "label": label} for label in labels])
    with pytest.raises(InputError, match="the baseline learns nothing from the records of --train"):
        main(EvaluateOptions("none", "sentiment", data=[data], train=[train]))


TASKS = ["chat", "code", "content", "debugging", "paraphrase", "sentiment", "summarization"]


@pytest.mark.parametrize("name", slow_but(TASKS, "chat", "code", "sentiment"))
def test_every_task_has_records_to_try_it_with(name, folder, capsys):
    main(EvaluateOptions(str(folder), name, limit=3, max_new_tokens=4, json=True))
    printed = capsys.readouterr()
    systems = json.loads(printed.out.strip().splitlines()[-1])["systems"]
    assert "made here, which are for trying out" in printed.err
    assert "answer_perplexity" in systems[str(folder)] and len(systems[str(folder)]) > 1
    if "pass@1" in systems[str(folder)]:
        assert systems["the references"]["pass@1"] == 100.0


def test_perplexity_of_any_text(folder, lm, tmp_path, capsys):
    text = program(5)
    (tmp_path / "text.txt").write_text(text)
    main(EvaluateOptions(str(folder), "perplexity", [str(tmp_path / "text.txt")], json=True))
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["metrics"]
    assert said["bits_per_byte"] == pytest.approx(-lm.score(text) / math.log(2) / len(text.encode()), rel=1e-4)
    assert said["perplexity"] == pytest.approx(math.exp(-lm.score(text) / len(lm.tokenizer.encode(text))), rel=1e-4)


def test_perplexity_of_a_field_of_another_name(folder, tmp_path, capsys):
    records = write(tmp_path / "a.jsonl", [{"body": program(5)}])
    main(EvaluateOptions(str(folder), "perplexity", [records], ["text=body"], json=True))
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["metrics"]["perplexity"] > 1
    with pytest.raises(InputError, match=r"there are body: choose one with --text-key \(evaluate: --map text=FIELD\)"):
        main(EvaluateOptions(str(folder), "perplexity", [records]))


def test_samples_and_their_seed(lm):
    from gpt_keras.sampling_options import SamplingOptions

    def sampled(seed):
        options = SamplingOptions(temperature=1.0, num_sequences=3, seed=seed, max_new_tokens=6)
        return (
            Answerer(lm, find_task("paraphrase")).outputs([{"text": "a b", "paraphrase": "b a"}] * 2, options).answers
        )

    assert sampled(1) == sampled(1) != sampled(2)
    assert [len(answers) for answers in sampled(1)] == [3, 3]


@pytest.mark.slow
def test_a_task_has_several_answers_written_and_the_best_is_measured_unless_one_greedy_one_is_asked_for(
    folder, tmp_path, capsys
):
    records = [{"text": "def parse_line(", "paraphrase": "def read_line("}] * 2
    data, output = write(tmp_path / "a.jsonl", records), tmp_path / "out.jsonl"

    def answers(**options):
        main(EvaluateOptions(str(folder), "paraphrase", [data], output=output, max_new_tokens=6, **options))
        return [json.loads(line)["answers"] for line in output.read_text("utf-8").splitlines()]

    task = find_task("paraphrase")
    assert [len(found) for found in answers()] == [task.samples] * 2 == [16] * 2
    for found in answers():
        assert found == task.best_first(records[0], found)
    assert [len(found) for found in answers(temperature=0.0)] == [1, 1]
    assert [len(found) for found in answers(samples=3)] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sentimet"], "there is no task sentimet"),
        (["--map", "words=text"], "there is no field words; fields are text, label"),
        (["--samples", "2"], "--samples above 1 needs a --temperature"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--data", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--data", "DATA", "--map", "text=phrase"], "no field 'phrase'; there are text, label"),
        (["--data", "EMPTY"], "there is no record in it"),
    ],
)
def test_what_is_wrong_is_one_line(folder, tmp_path, arguments, message, capsys, monkeypatch):
    places = {"DATA": write(tmp_path / "a.jsonl", SENTIMENT), "EMPTY": write(tmp_path / "b.jsonl", [])}
    given = ["evaluate", str(folder), *(() if "--task" in arguments else ("--task", "sentiment"))]
    given += ["--data", places["DATA"]] if "--data" not in arguments else []
    monkeypatch.setattr("sys.argv", [*given, *(places.get(argument, argument) for argument in arguments)])
    assert cli() == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_perplexity_is_of_some_text():
    with pytest.raises(InputError, match="--task perplexity needs --data"):
        EvaluateOptions("model", "perplexity")
    with pytest.raises(InputError, match="--train needs --data"):
        EvaluateOptions("model", "sentiment", train=["labelled.csv"])


def test_a_model_without_template_is_asked_in_plain_text(lm):
    assert Answerer(lm, find_task("sentiment")).template == PLAIN_TEMPLATE
    with pytest.raises(InputError, match="no turn of the assistant"):
        Answerer(lm, find_task("chat")).outputs([{"messages": [{"role": "user", "content": "a"}]}])
