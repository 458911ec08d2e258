"""`finetune`: from records to a model or an adapter that loads, with what it needs to chat."""

import io
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from rich.console import Console

import gpt_keras
from gpt_keras import finetune, kernels
from gpt_keras.chat_vocabulary import grown, ready_to_chat
from gpt_keras.compilation import compile_function
from gpt_keras.config import GPTConfig
from gpt_keras.data.conversations import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, encode_for_training
from gpt_keras.data.embedded import embedded_records
from gpt_keras.data.sentencepiece_tokenizer import train_tokenizer
from gpt_keras.evaluation import sandbox
from gpt_keras.evaluation.answers import Answerer
from gpt_keras.language_model import LanguageModel
from gpt_keras.lora import add_lora, hold_frozen, projections_of
from gpt_keras.model import GPT
from gpt_keras.tasks import find_task
from gpt_keras.training.checkpoint import newest_step
from gpt_keras.training.finetune_data import check_data, read_data
from gpt_keras.training.finetune_options import FinetuneOptions
from gpt_keras.training.loss import NextTokenLoss, weighted_tokens
from gpt_keras.training.record import read_metrics

from ..conftest import PATIENCE, slow_but
from ..test_vocabulary_loss import value_and_gradients

TASKS = ("sentiment", "summarization", "paraphrase", "code", "debugging", "chat", "content", "preference")
SHORT = ("--context-length", 128, "--batch-size", 2, "--precision", "float32", "--watch-records", 4)


def run(*arguments):
    """The command in this process: exit code."""
    from gpt_keras import command

    return command.run(finetune.main, FinetuneOptions, "finetune", [str(a) for a in arguments])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model with a tokenizer that has tokens for the roles."""
    texts = [str(record) for task in TASKS for record in embedded_records(task)[0][:150]]
    tokenizer = train_tokenizer(texts, 600)
    keras.utils.set_random_seed(0)
    config = GPTConfig.from_preset("nano", vocabulary_size=tokenizer.vocabulary_size, context_length=512)
    folder = tmp_path_factory.mktemp("base") / "model"
    LanguageModel(GPT(config), tokenizer).save(folder)
    return folder


@pytest.mark.parametrize("task", slow_but(TASKS, "sentiment", "preference"))
def test_every_task_runs_with_no_data(task, base, tmp_path):
    arguments = (base, "--task", task, "--steps", 2, "--context-length", 512, "--batch-size", 2, "--evaluations", 1,
                 "--precision", "float32", "--watch-records", 1, "--run-dir", tmp_path / "run")  # fmt: skip
    assert run(*arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["steps"] == 2 and summary["metrics"]["best_step"] == 2
    assert summary["before"].keys() <= summary["metrics"].keys()
    assert gpt_keras.load(tmp_path / "run" / "model").tokenizer.chat_template == DEFAULT_TEMPLATE
    assert (tmp_path / "run" / "loss.png").exists() and (tmp_path / "run" / "samples.md").exists()


@pytest.mark.parametrize("int8", slow_but([(), ("--int8",)], ()))
def test_an_adapter_learns_and_opens_as_the_base_with_it(int8, base, tmp_path, capsys):
    import torch
    from peft import AutoPeftModelForCausalLM

    folder = tmp_path / "run"
    arguments = (base, "--task", "sentiment", "--lora", 4, *int8, "--learning-rate", 0.01, "--warmup-steps", 1, *SHORT)
    assert run(*arguments, "--steps", 12, "--run-dir", folder, "--json") == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    before = json.loads((folder / "before.json").read_text())
    assert metrics["validation_loss"] < before["validation_loss"] - 0.5
    assert metrics["trained_parameters"] < 0.3 * metrics["parameters"]
    state = max(path.stat().st_size for path in (folder / "checkpoints").rglob("*.safetensors"))
    assert state < 4.2 * 3 * metrics["trained_parameters"] + 50_000  # no frozen weight is kept
    lm = gpt_keras.load(folder / "adapter")
    assert lm.tokenizer.chat_template == DEFAULT_TEMPLATE
    export = ["export", str(folder / "adapter"), "--format", "folder", "--output", str(folder / "merged"), "--quiet"]
    assert subprocess.run([sys.executable, "-m", "gpt_keras." + export[0], *export[1:]], check=False).returncode == 0
    ids, merged = np.array([[5, 300, 17]]), gpt_keras.load(folder / "merged")
    np.testing.assert_allclose(np.asarray(merged.model(ids)), np.asarray(lm.model(ids)), atol=1e-4)
    assert merged.tokenizer.chat_template == DEFAULT_TEMPLATE
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter"), dtype=torch.float32)  # finds the base
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    margin = 0.05 * np.abs(expected).max() if int8 else 1e-3  # the adapter was made for a base of 8 bits
    np.testing.assert_allclose(np.asarray(lm.model(ids)), expected, atol=margin)
    assert isinstance(lm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=3), str)


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(base, tmp_path):
    arguments = (base, "--task", "paraphrase", *SHORT, "--patience", 0, "--evaluation-steps", 100)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(*arguments, "--steps", 6, "--schedule", "wsd", "--decay", 0, "--run-dir", whole) == 0
    for steps in (3, 6):
        assert run(*arguments, "--steps", steps, "--schedule", "wsd", "--decay", 0, "--run-dir", halves) == 0
    assert newest_step(halves / "checkpoints") == 6
    one, two = ([record["loss"] for record in read_metrics(folder)] for folder in (whole, halves))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.slow
def test_what_is_told_is_of_the_checkpoint_that_is_saved(base, tmp_path):
    """A learning rate that spoils the model: the best checkpoint is an early one, and patience ends the run."""
    folder = tmp_path / "run"
    arguments = (base, "--task", "chat", *SHORT, "--context-length", 512, "--truncation", "refuse", "--patience", 2,
                 "--evaluation-steps", 2, "--steps", 60, "--schedule", "wsd", "--decay", 0)  # fmt: skip
    assert run(*arguments, "--warmup-steps", 40, "--learning-rate", 5.0, "--run-dir", folder) == 0
    summary = json.loads((folder / "summary.json").read_text())
    measured = {record["step"]: record for record in read_metrics(folder) if "score" in record}
    best = min(measured, key=lambda step: measured[step]["validation_loss"])
    metrics = summary["metrics"]
    assert summary["stopped_early"] and best < metrics["steps"] < 60
    assert metrics["best_step"] == best and metrics["validation_loss"] == measured[best]["validation_loss"]
    lm = gpt_keras.load(folder / "model", dtype="float32")
    _, records = embedded_records("chat")
    found = Answerer(lm, find_task("chat")).outputs(records, generate=False)
    assert found.nats.sum() / found.tokens.sum() == pytest.approx(metrics["validation_loss"], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_taken_for_the_finished_one(base, tmp_path):
    arguments = (base, "--task", "chat", *SHORT, "--run-dir", tmp_path / "run")
    assert run(*arguments, "--steps", 1) == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_keras.training.finetune_run.Loop.run", interrupted)
        assert run(*arguments, "--steps", 2) == 130
    assert run(*arguments, "--steps", 2) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["steps"] == 2


def test_a_task_that_measures_nothing_it_is_watched_by_is_refused_before_training(base, tmp_path, capsys):
    (tmp_path / "echo.py").write_text(
        "from gpt_keras.data.records import Fields\nfrom gpt_keras.tasks.task import Task, text_of, turns\n"
        "class Echo(Task):\n    fields = Fields(('text',))\n    watched = 'nothing'\n"
        "    def messages(self, record):\n        return turns(text_of(record, 'text'), record['text'])\n"
        "    def metrics(self, records, outputs):\n        return []\nTASK = Echo()\n"
    )
    (tmp_path / "data.csv").write_text("text\n" + "hello there\n" * 8)
    given = (base, "--task", tmp_path / "echo.py", "--data", tmp_path / "data.csv", *SHORT)
    assert run(*given, "--run-dir", tmp_path / "run") == 2
    assert "measures no nothing" in capsys.readouterr().err


def test_pairs_may_each_fill_the_context(base, tmp_path):
    words = " ".join(["a"] * 40)
    lines = [json.dumps({"prompt": "x", "chosen": f"{words} {i}", "rejected": f"{words} b {i}"}) for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    tokenizer = gpt_keras.load(base).tokenizer
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"{words} b 7"}]
    context = len(encode_for_training(tokenizer, messages)[0]) - 1
    arguments = (base, "--task", "preference", "--data", tmp_path / "pairs.jsonl", "--batch-size", 2, "--steps", 1,
                 "--truncation", "refuse", "--context-length", context, "--run-dir", tmp_path / "run")  # fmt: skip
    assert run(*arguments) == 0


def test_a_finished_run_is_told_again_and_another_one_refused(base, tmp_path, capsys):
    arguments = (base, "--task", "chat", *SHORT, "--steps", 1, "--run-dir", tmp_path / "run")
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert run(*arguments, "--lora", 2) == 2
    assert "--lora None, not 2" in capsys.readouterr().err


def test_the_records_it_is_measured_by_stay_the_same(base, tmp_path, capsys):
    def answer(name: str, words: str):
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": words}]
        (tmp_path / name).write_text(json.dumps({"messages": turns}) + "\n")
        return tmp_path / name

    data, valid = answer("a.jsonl", "Good morning"), answer("b.jsonl", "Good evening")
    arguments = (base, "--task", "chat", *SHORT, "--data", data, "--valid", valid, "--run-dir", tmp_path / "run")
    assert run(*arguments, "--steps", 1) == 0
    answer("b.jsonl", "Good night")
    assert run(*arguments, "--steps", 2) == 2
    assert "other held-out records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("truncation", "words"),
    [("drop", "1 held-out records are longer than 64"), ("cut_end", "1 held-out records have no answer that is left")],
)
def test_held_out_records_that_are_left_out_are_told_of(truncation, words, base, tmp_path):
    short, long = ({"document": "A cat sat. " * n, "summary": "A cat."} for n in (1, 80))
    for name, records in (("a.jsonl", [short]), ("b.jsonl", [short, long])):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    console = Console(file=io.StringIO(), width=300)
    data, valid = [str(tmp_path / "a.jsonl")], [str(tmp_path / "b.jsonl")]
    options = FinetuneOptions(model=str(base), task="summarization", data=data, valid=valid, truncation=truncation)
    tokenizer = gpt_keras.load(base).text_tokenizer.with_template(PLAIN_TEMPLATE)
    found = read_data(options, check_data(options, find_task("summarization")), tokenizer, 64, console)
    assert len(found.validation) == 1
    assert words in console.file.getvalue()


def test_programs_that_cannot_be_contained_are_refused_at_the_start(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: sandbox.Isolation(frozenset()))
    monkeypatch.setattr(find_task("code"), "_unsafe", False)  # and again behind this test
    assert run(base, "--task", "code", "--run-dir", tmp_path / "run") == 2
    assert "--unsafe" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert run(tmp_path / "none", "--task", "code", "--unsafe", "--run-dir", tmp_path / "run") == 2
    assert "none" in capsys.readouterr().err


def test_bad_input_gets_one_line(base, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": "positive"}\n{"text": "bad"}\n')
    for arguments, words in (
        ((base, "--task", "sentiment", "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        ((base, "--task", "sentiment", "--data", data), "data.jsonl:2"),
        ((base, "--task", "poetry"), "there is no task poetry"),
        ((base, "--task", "chat", "--int8"), "--lora"),
        ((base, "--task", "chat", "--epochs", 1, "--steps", 2), "give one of"),
        ((base, "--task", "preference", "--label-smoothing", 0.1), "do not go with preferences"),
        ((tmp_path / "none", "--task", "chat"), "none"),
    ):
        assert run(*arguments, "--run-dir", tmp_path / "run") == 2
        message = capsys.readouterr().err
        assert words in message and len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_grows_by_roles_that_are_special(base):
    keras.utils.set_random_seed(1)
    lm = gpt_keras.load(base)
    without = lm.tokenizer.files
    plain = lm.tokenizer.with_special(["<|tool|>", "<|user|>"])
    assert plain.vocabulary_size == lm.tokenizer.vocabulary_size + 1  # <|user|> is there
    assert plain.encode("<|tool|>", special=True) == [plain.vocabulary_size - 1]
    assert plain.encode("a<|tool|>b") != plain.encode("a<|tool|>b", special=True)
    assert plain.encode("def f(x): return x") == lm.tokenizer.encode("def f(x): return x")
    assert without.keys() >= {"tokenizer.model"}
    larger = grown(lm.model, lm.config.vocabulary_size + 3)
    ids = np.array([[5, 300, 17]])
    old, new = np.asarray(lm.model(ids)), np.asarray(larger(ids))
    np.testing.assert_allclose(new[..., :-3], old, atol=1e-5)
    np.testing.assert_allclose(new[..., -1], old.mean(-1), atol=1e-4)


def test_gpt2_is_taught_roles_or_with_an_adapter_plain_text(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    hub = Tokenizer(models.BPE())
    hub.pre_tokenizer, hub.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    hub.train_from_iterator(["what is the sentiment of this text"] * 5, trainer)
    hub.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
    tokenizer = gpt_keras.data.tokenizer.Tokenizer.load(tmp_path)
    config = GPTConfig.from_preset("nano", vocabulary_size=tokenizer.vocabulary_size, context_length=64)
    lm = LanguageModel(GPT(config), tokenizer)
    messages = [{"role": "user", "content": "good?"}, {"role": "assistant", "content": "yes"}]
    taught = ready_to_chat(lm)
    assert taught.config.vocabulary_size == config.vocabulary_size + 3
    ids, trained = encode_for_training(taught.tokenizer, messages)
    assert ids[1] == taught.tokenizer.special["<|user|>"] and ids[-1] == tokenizer.end_id and trained[-1]
    taught.save(tmp_path / "taught")
    again = gpt_keras.load(tmp_path / "taught")
    assert encode_for_training(again.tokenizer, messages) == (ids, trained)
    kept = ready_to_chat(lm, grow=False)
    assert kept.model is lm.model and kept.tokenizer.chat_template == PLAIN_TEMPLATE


def test_what_is_not_said_follows_from_the_data_and_the_model():
    def settled(rows, width, **given):
        found = FinetuneOptions(model="m", task="chat", **given).settled(rows, width)
        return found.steps, found.minutes, pytest.approx(found.learning_rate)

    assert settled(8000, 768) == (3000, None, 1e-4)
    assert settled(31, 192) == (100, None, 3e-4)
    assert settled(31, 576, epochs=1, lora=8) == (4, None, 5e-4)
    assert settled(31, 192, minutes=1, learning_rate=2e-5) == (None, 1, 2e-5)


@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu", "gelu_exact", "relu"])
def test_frozen_kernels_in_8_bits_give_almost_the_same(feed_forward):
    keras.utils.set_random_seed(0)
    options = {"vocabulary_size": 400, "context_length": 8, "initializer_range": 0.1, "feed_forward": feed_forward}
    model, ids = GPT(GPTConfig.from_preset("nano", **options)), np.array([[5, 300, 17, 99]])
    before = np.asarray(model(ids))
    add_lora(model, 2)
    hold_frozen(model, "int8")
    assert {projection.base_kernel.dtype for projection in projections_of(model)} == {"int8"}
    after = np.asarray(model(ids))
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_frozen_kernels_in_bfloat16_give_the_same(base):
    ids = np.array([[5, 300, 17, 99]])
    narrow = gpt_keras.load(base, dtype="mixed_bfloat16")
    before = np.asarray(narrow.model(ids), np.float32)
    add_lora(narrow.model, 2)
    hold_frozen(narrow.model, "bfloat16")
    np.testing.assert_array_equal(np.asarray(narrow.model(ids), np.float32), before)


def test_only_weighted_tokens_need_the_head():
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    hidden, table = (random.normal(size=shape).astype(np.float32) for shape in ((4, 64, 16), (50, 16)))
    targets, weights = random.integers(0, 50, (4, 64)), (random.random((4, 64)) < 0.2).astype(np.float32)
    most = int(weights.sum())
    found, taken, kept = weighted_tokens(hidden, most, weights, targets, weights)
    assert found.shape == (1, -(-most // 64) * 64, 16) and float(keras.ops.sum(kept)) == most
    assert sorted(np.asarray(taken)[np.asarray(kept) > 0]) == sorted(targets[weights > 0])

    def every(hidden, table):
        return NextTokenLoss().of_hidden_states(targets, hidden, table, weights)

    def some(hidden, table):
        return NextTokenLoss(most_weighted=most).of_hidden_states(targets, hidden, table, weights)

    for a, b in zip(value_and_gradients(every, hidden, table), value_and_gradients(some, hidden, table), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pieces_of_tokens_without_weight_are_left_out():
    random = np.random.default_rng(0)
    hidden, table = (random.normal(size=shape).astype(np.float32) for shape in ((4, 512, 16), (50, 16)))
    targets, weights = random.integers(0, 50, (4, 512)), np.zeros((4, 512), np.float32)
    weights.flat[random.permutation(2048)[:512]] = 1.0  # two pieces of seven
    spoilt = np.where(weights[..., None] > 0, hidden, np.nan).astype(np.float32)

    def loss(hidden, table):
        return NextTokenLoss(most_weighted=1792).of_hidden_states(targets, hidden, table, weights)

    with kernels.fast_kernels():
        for function in (loss, compile_function(loss)):
            whole, left_out = (value_and_gradients(function, x, table) for x in (hidden, spoilt))
            for a, b in zip(whole, left_out, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_killed_run_goes_on(base, tmp_path):
    command = [sys.executable, "-m", "gpt_keras.finetune", str(base), "--task", "sentiment", *map(str, SHORT),
               "--steps", "40", "--checkpoint-steps", "3", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import time

    deadline = time.monotonic() + PATIENCE
    while (newest_step(tmp_path / "run" / "checkpoints") or 0) < 6 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.kill()
    process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    steps = [record["step"] for record in read_metrics(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))
    shutil.rmtree(tmp_path / "run")
