"""Benchmarks of lm-evaluation-harness on a model of ours, against the harness's own `hf` model on the same folder."""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import gpt_keras
from gpt_keras.config import GPTConfig
from gpt_keras.data.conversations import DEFAULT_TEMPLATE
from gpt_keras.data.errors import InputError
from gpt_keras.data.pretraining import Batches
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer, TokenizerSettings
from gpt_keras.evaluation import lm_eval_adapter
from gpt_keras.evaluation.lm_eval_adapter import GPTKerasLM
from gpt_keras.folder import save_folder
from gpt_keras.training.loss import NextTokenLoss

from ..conftest import build, program, slow_but
from ..data.test_hub_tokenizer import write_byte_level

CONTEXT = 96


@pytest.fixture(scope="module")
def sentencepiece(tokenizer, corpus, tmp_path_factory):
    """A Llama with a SentencePiece tokenizer and a chat template, which has learned enough to write words."""
    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=CONTEXT)
    model = build(config)
    model.compile(keras.optimizers.AdamW(3e-3), NextTokenLoss(), jit_compile="auto")
    model.fit(Batches(corpus.streams["train"], CONTEXT, 8).dataset(0, 60), epochs=1, shuffle=False, verbose=0)
    settings = TokenizerSettings({}, chat_template=DEFAULT_TEMPLATE)
    path = tmp_path_factory.mktemp("sentencepiece") / "model"
    save_folder(model, SentencePieceTokenizer(tokenizer.model, settings=settings), path)
    return path


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A GPT-2 with byte-level BPE, which begins no text with a begin token."""
    path = tmp_path_factory.mktemp("byte_level")
    write_byte_level(path / "tokenizer", chat_template=CHATML)
    small = {"num_layers": 2, "hidden_dim": 32, "num_heads": 4, "initializer_range": 0.3}
    config = GPTConfig.from_preset("gpt2", vocabulary_size=400, context_length=CONTEXT, **small)
    save_folder(build(config, seed=3), Tokenizer.load(path / "tokenizer"), path / "model")
    return path / "model"


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>"
    "\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module", params=slow_but(["sentencepiece", "byte_level"], "sentencepiece"))
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def ours(folder):
    return GPTKerasLM(gpt_keras.load(folder), batch_size=4)


@pytest.fixture(scope="module")
def theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=4)


QUESTIONS = [
    {"question": "def parse_line(file", "choices": ["):", ", limit=3):", " and more"], "answer": 1},
    {"question": "    for token in tree:\n        if token.", "choices": ["read", "load", "é🎉"], "answer": 0},
    {"question": "return ", "choices": ["len(row)", "x", "len(key)\n"], "answer": 2},
    {"question": program(500), "choices": ["\n\ndef", "yield word", "end"], "answer": 1},
    {"question": "<|endoftext|></s>def", "choices": ["read", "sort", "find"], "answer": 2},
]
TEXTS = [program(seed) for seed in range(300, 303)] + ["", "short", "<s>def read_line(", " \n é🎉\n"]
PROMPTS = [
    "def parse_line(",
    "return",
    *(program(seed)[: 40 + 150 * seed] for seed in range(4)),
    "é🎉 and <s>",
    "  for ",
]

TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_mutual_info")],
    },
    "no_delimiter": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} ",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "prefilled": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "gen_prefix": "The answer is ",
        "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{prompt}}",
        "generation_kwargs": {"until": ["\n\n", "yield", ":\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "free_generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{prompt}}",
        "generation_kwargs": {"max_new_tokens": 40, "until": [], "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    },
}
ROWS = {
    "multiple_choice": QUESTIONS,
    "loglikelihood_rolling": [{"text": text} for text in TEXTS],
    "generate_until": [{"prompt": prompt} for prompt in PROMPTS],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the files of `TASKS`, and what they read."""
    path = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task["output_type"]]), "utf-8")
        source = {"data_files": {"test": str(data)}, "cache_dir": str(path / "cache")}
        written = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **task}
        (path / f"{name}.yaml").write_text(json.dumps(written))  # JSON is YAML
    return path


def evaluate(model, tasks, names, **options):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model, tasks=list(names), task_manager=manager, log_samples=True, bootstrap_iters=0, **options
    )


def check_equal(found, wanted, names) -> None:
    """The same metrics, and for each request the same log-likelihoods or text."""
    for name in names:
        for metric, value in wanted["results"][name].items():
            if isinstance(value, float):
                assert found["results"][name][metric] == pytest.approx(value, rel=1e-4, abs=1e-4), (name, metric)
        assert len(found["samples"][name]) == len(wanted["samples"][name])
        for one, other in zip(found["samples"][name], wanted["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
            check_responses(one["resps"], other["resps"])


def check_responses(found, wanted) -> None:
    if isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_responses(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-4)
    else:
        assert found == wanted


def test_every_kind_of_task_gives_the_numbers_of_the_hf_model(ours, theirs, tasks):
    found, wanted = evaluate(ours, tasks, TASKS), evaluate(theirs, tasks, TASKS)
    check_equal(found, wanted, TASKS)
    texts = [sample["resps"][0][0] for sample in found["samples"]["free_generation"]]
    assert len(set(texts)) > 3


@pytest.mark.parametrize("multiturn", [False, True])
def test_chat_templates_give_the_numbers_of_the_hf_model(ours, theirs, tasks, multiturn):
    names = ("choices", "prefilled", "generation")
    options = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "system_instruction": "Be\nbrief. "}
    found, wanted = (evaluate(model, tasks, names, **options) for model in (ours, theirs))
    check_equal(found, wanted, names)
    prompt = found["samples"]["choices"][0]["arguments"][0][0]
    assert "Be\nbrief." in prompt and "parse_line" in prompt and prompt != "def parse_line(file"
    assert ours.chat_template(True) == theirs.chat_template(True) == ours.tokenizer.chat_template


@pytest.mark.parametrize("reply", [True, False])
def test_conversations_are_rendered_as_the_hf_model_renders_them(ours, theirs, reply):
    for words in ("yes", "yes ", "  yes\n", "two\n\n words"):
        said = [{"role": "user", "content": " Well? "}, {"role": "assistant", "content": words}]
        assert ours.apply_chat_template(said, reply) == theirs.apply_chat_template(said, reply)


def test_texts_are_tokenized_as_the_hf_model_tokenizes_them(ours, theirs):
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    assert ours.max_length == theirs.max_length == CONTEXT
    for text in [*PROMPTS, *TEXTS, "<s>", "<|im_start|>user\nhi<|im_end|>", "</s> <pad>"]:
        for asked in (None, False, True):
            assert ours.tok_encode(text, add_special_tokens=asked) == theirs.tok_encode(text, add_special_tokens=asked)
        if text.strip():
            assert ours._encode_pair(text + "  ", "x y") == theirs._encode_pair(text + "  ", "x y")


def test_with_a_begin_token_too_the_numbers_are_those_of_the_hf_model(folder, tasks):
    from lm_eval.models.huggingface import HFLM

    for adds in (False, True):
        ours = GPTKerasLM(path=str(folder), batch_size=4, add_bos_token=adds)
        theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=4, add_bos_token=adds)
        for text in ("def", "<s>def", "<|endoftext|>def", ""):
            assert ours.tok_encode(text) == theirs.tok_encode(text)
    names = ("choices", "perplexity", "generation")
    check_equal(evaluate(ours, tasks, names), evaluate(theirs, tasks, names), names)


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.mark.slow
def test_neither_the_batch_size_nor_the_company_changes_a_text(sentencepiece):
    model = gpt_keras.load(sentencepiece)
    options = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": True, "temperature": 0.9}
    asked = requests(*((prompt, options) for prompt in [*PROMPTS, PROMPTS[0], PROMPTS[0]]))
    texts = [GPTKerasLM(model, batch_size=size).generate_until(asked, disable_tqdm=True) for size in (3, 16)]
    assert texts[0] == texts[1]
    repeated = [texts[0][0], *texts[0][-2:]]
    assert len(set(repeated)) > 1  # another seed each time


def test_options_of_generation_are_passed_on(sentencepiece):
    lm = GPTKerasLM(gpt_keras.load(sentencepiece))
    asked = {"until": "limit", "max_gen_toks": 20, "num_beams": 3}
    (beams,) = lm.generate_until(requests(("def parse_", asked)))
    assert beams and "limit" not in beams
    warm = {"max_gen_toks": 20, "do_sample": True, "temperature": 5.0}
    ones = lm.generate_until(requests(("def parse_", {**warm, "top_k": 1}), ("def parse_", {"max_gen_toks": 20})))
    assert ones[0] == ones[1]
    for wrong, words in (
        ({"typical_p": 0.5}, "generation_kwargs has typical_p"),
        ({"max_gen_toks": CONTEXT}, "lower max_gen_toks"),
        ({"max_gen_toks": 5, "top_p": 2.0, "do_sample": True}, "top_p must be"),
    ):
        with pytest.raises(InputError, match=words):
            lm.generate_until(requests(("def", wrong)))


def test_the_name_of_the_tokenizer_tells_templates_apart(sentencepiece, byte_level):
    models = [GPTKerasLM(path=str(path)) for path in (sentencepiece, sentencepiece, byte_level)]
    assert [Counter(model.tokenizer_name for model in models)[model.tokenizer_name] for model in models] == [2, 2, 1]
    before = models[0].tokenizer_name
    models[0].tokenizer.chat_template = CHATML
    assert models[0].tokenizer_name != before


@pytest.mark.slow
def test_a_cache_is_filled_and_used(sentencepiece, tasks, tmp_path):
    class Idle(GPTKerasLM):
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

    model, cache = gpt_keras.load(sentencepiece), {"use_cache": str(tmp_path / "cache")}
    first = evaluate(GPTKerasLM(model), tasks, TASKS, **cache)
    check_equal(evaluate(Idle(model), tasks, TASKS, **cache), first, TASKS)


def test_the_harness_finds_the_model_by_its_name(sentencepiece, tasks):
    found = evaluate("gpt_keras", tasks, ["perplexity"], model_args=f"path={sentencepiece}", batch_size="auto")
    check_equal(found, evaluate(GPTKerasLM(path=str(sentencepiece)), tasks, ["perplexity"]), ["perplexity"])
    assert found["config"]["model_num_parameters"] > 0


@pytest.mark.slow
def test_the_harness_s_command_knows_the_model(sentencepiece, tasks, tmp_path):
    command = [sys.executable, "-m", "gpt_keras.evaluation.lm_eval_adapter", "--model", "gpt_keras"]
    command += ["--model_args", f"path={sentencepiece}", "--batch_size", "4", "--tasks", "choices"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "acc_norm" in done.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["choices"]
    wanted = evaluate(GPTKerasLM(path=str(sentencepiece)), tasks, ["choices"])["results"]["choices"]
    assert found["acc,none"] == wanted["acc,none"]


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_wrong_with_the_harness_s_command_is_one_line(installed, tmp_path):
    (tmp_path / "lm_eval.py").write_text("" if installed else "raise ImportError('none')", "utf-8")
    module = "gpt_keras.evaluation.lm_eval_adapter"
    command = [sys.executable, "-m", module, "--model", "gpt_keras", "--model_args", "path=nowhere", "--tasks", "piqa"]
    environment = os.environ if installed else {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    words = "error: nowhere: no model folder there" if installed else "error: lm-evaluation-harness cannot be imported"
    assert done.stderr.strip().splitlines()[-1].startswith(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give the model, or path=MODEL"),
        ({"path": "a", "lm": object()}, "give the model, or path=MODEL"),
        ({"path": "nowhere"}, "no model folder there"),
    ],
)
def test_what_the_model_is_made_from_is_checked(options, words):
    with pytest.raises(InputError, match=words):
        GPTKerasLM(**options)


def test_other_wrong_input_is_one_clear_line(sentencepiece, tmp_path):
    with pytest.raises(InputError, match="batch_size must be a number or auto, not many"):
        GPTKerasLM(path=str(sentencepiece), batch_size="many")
    model = gpt_keras.load(sentencepiece)
    with pytest.raises(InputError, match="without a tokenizer"):
        GPTKerasLM(gpt_keras.LanguageModel(model.model, None))
    lm = GPTKerasLM(model)
    with pytest.raises(InputError, match="named 'other'"):
        lm.chat_template("other")
    lm.tokenizer.chat_template = None
    for call in (lambda: lm.chat_template(True), lambda: lm.apply_chat_template([{"role": "user", "content": "a"}])):
        with pytest.raises(InputError, match="no chat template"):
            call()
    assert lm.chat_template(False) is None


def test_without_the_harness_the_module_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'gpt_keras\[eval\]'"):
        importlib.reload(lm_eval_adapter)


def test_a_template_without_a_place_for_the_system_is_given_none(sentencepiece):
    lm = GPTKerasLM(path=str(sentencepiece))
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}|{% endfor %}"
    )
    user = {"role": "user", "content": "hi"}
    assert lm.apply_chat_template([{"role": "system", "content": "x"}, user]) == "hi|"
    lm.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(InputError, match="never"):
        lm.apply_chat_template([user])


def test_an_empty_continuation_costs_nothing_and_a_missing_context_is_the_prefix(sentencepiece):
    lm = GPTKerasLM(path=str(sentencepiece))
    ids = lm.tokenizer.encode("def read")
    found = lm._loglikelihood_tokens([(None, [], ids), (None, [lm.prefix_token_id], ids), (None, ids, [])])
    assert found[0] == found[1]
    assert found[2] == (0.0, True)
    assert np.isfinite(found[0][0])
