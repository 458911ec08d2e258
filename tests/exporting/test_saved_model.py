"""The SavedModel as its users meet it: in a process without Keras, and from C."""

import dataclasses
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_keras.data.conversations import encode_conversation
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_folder
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.language_model import LanguageModel

from ..conftest import build, program, slow_but
from ..data.test_hub_tokenizer import write_byte_level

pytestmark = pytest.mark.tensorflow

PROMPTS = ["def parse_line(", "", "é🎉 \u2581", "import os\nclass Tree:\n    def", "x" * 5, "\n\n        return"]
NEW = 24

WITHOUT_KERAS = """
import importlib.util, json, os, sys
sys.modules["keras"] = None  # importing it is an error from here on
import tensorflow as tf
text = os.path.dirname(importlib.util.find_spec("tensorflow_text").origin)
tf.load_op_library(text + "/python/ops/_sentencepiece_tokenizer.so")
loaded = tf.saved_model.load(sys.argv[1])
prompts = json.loads(sys.argv[2])
for batch in ([prompts] if sys.argv[3] == "together" else [[prompt] for prompt in prompts]):
    result = loaded.signatures["serving_default"](text=tf.constant(batch))
    assert list(result) == ["generated_text"]
    print(json.dumps([text.decode("utf-8") for text in result["generated_text"].numpy()]))
"""


@pytest.fixture(scope="module")
def lm(tokenizer):
    from gpt_keras.config import GPTConfig

    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, initializer_range=0.3)
    return LanguageModel(build(config), tokenizer)


@pytest.fixture(scope="module")
def exported(lm, tmp_path_factory) -> Path:
    from gpt_keras.exporting.saved_model import export_saved_model

    return export_saved_model(lm.model, lm.tokenizer, tmp_path_factory.mktemp("saved_models") / "tiny", NEW)


@pytest.fixture(scope="module")
def loaded(exported):
    return load(exported)


def load(path):
    """The SavedModel as Python users load it; `.path` is where it came from."""
    import tensorflow as tf

    from gpt_keras.data.graph_tokenizer import load_operations

    for library in ("sentencepiece_tokenizer", "regex_split_ops", "normalize_ops"):
        load_operations(library)
    loaded = tf.saved_model.load(str(path))
    loaded.path = str(path)
    return loaded


def call(loaded, name: str, **inputs) -> dict:
    """What a signature gives; options that are not given have the defaults that the file itself holds."""
    import tensorflow as tf

    signature = loaded.signatures[name]
    given = {key: tf.constant(value, spec.dtype) for key, value in inputs.items() for spec in [specs(signature)[key]]}
    given = {**defaults(loaded, name), **given}
    found = {key: value.numpy() for key, value in signature(**given).items()}
    return {
        key: [text.decode("utf-8") for text in value] if value.dtype == object else value
        for key, value in found.items()
    }


def specs(signature) -> dict:
    return signature.structured_input_signature[1]


def defaults(loaded, name: str) -> dict:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((Path(loaded.path) / "saved_model.pb").read_bytes())
    found = saved.meta_graphs[0].signature_def[name].defaults
    return {key: tf.constant(tf.make_ndarray(value)) for key, value in found.items()}


def generate_without_keras(exported, prompts, how="together") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, str(exported), json.dumps(prompts), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [text for line in done.stdout.splitlines() for text in json.loads(line)]


@pytest.mark.parametrize("how", slow_but(["together", "one by one"], "together"))
def test_greedy_text_equals_generate_without_keras(lm, exported, how):
    assert generate_without_keras(exported, PROMPTS, how) == lm.generate(PROMPTS, max_new_tokens=NEW)


@pytest.mark.slow
def test_a_model_that_ends_at_once_gives_empty_texts_and_no_texts_give_none(lm, tmp_path):
    from gpt_keras.exporting.saved_model import export_saved_model

    model = build(lm.config)
    model.embedding.token_embedding.assign(0.0 * model.embedding.token_embedding)  # equal logits: greedy is token 0
    ending = LanguageModel(model, _EndFirst(lm.tokenizer.model))
    assert ending.generate(PROMPTS[:2], max_new_tokens=NEW) == ["", ""]
    exported = export_saved_model(model, ending.tokenizer, tmp_path / "m", NEW)
    assert generate_without_keras(exported, PROMPTS[:2]) == ["", ""]


class _EndFirst(SentencePieceTokenizer):
    """A tokenizer that takes id 0 for the end token."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        self.end_ids = frozenset({0})


def test_an_empty_batch_gives_an_empty_batch(loaded):
    import tensorflow as tf

    signature = loaded.signatures["serving_default"]
    assert signature(text=tf.constant([], tf.string))["generated_text"].shape == (0,)


def test_a_text_too_long_is_continued_from_its_last_tokens_and_says_so(lm, loaded):
    long = "def parse_line(table):\n" * 40
    ids = lm.tokenizer.encode(long)[-(lm.config.context_length - NEW) :]
    ((expected,),) = lm.complete([[lm.tokenizer.begin_id, *ids]], max_new_tokens=NEW)
    done = call(loaded, "generate", text=[long, "x"])
    assert done["generated_text"][0] == expected.text
    assert done["truncated"].tolist() == [True, False]
    assert done["prompt_tokens"].tolist() == [lm.config.context_length - NEW + 1, 2]


def test_the_export_holds_the_weights_once(lm, exported):
    weights = sum(4 * weight.numpy().size for weight in lm.model.weights)
    size = (exported / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert size <= weights + 4 * len(lm.tokenizer.model)
    assert (exported / "saved_model.pb").stat().st_size < 5e6


def test_the_graph_needs_nothing_but_tensorflow_and_tensorflow_text(exported):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((exported / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    operations = {node.op for function in graph.library.function for node in function.node_def}
    assert not {op for op in operations if op.startswith("Xla") or op in ("PyFunc", "EagerPyFunc")}
    assert not any("_XlaMustCompile" in f.attr and f.attr["_XlaMustCompile"].b for f in graph.library.function)


@pytest.mark.slow
def test_versions_count_up_and_nothing_half_written_is_seen(lm, exported):
    from gpt_keras.exporting.saved_model import export_saved_model

    second = export_saved_model(lm.model, lm.tokenizer, exported.parent, NEW)
    assert second == exported.parent / "2"
    names = ["1", "2", "batching.config", "monitoring.config"]
    assert sorted(path.name for path in exported.parent.iterdir()) == names


def test_batches_are_as_large_as_the_keys_and_values_allow():
    from gpt_keras.config import GPTConfig
    from gpt_keras.exporting.serving_files import batching_config

    def largest(**sizes) -> int:
        text = batching_config(GPTConfig.from_preset("gpt2", **sizes))
        allowed = [int(line.split()[1]) for line in text.splitlines() if line.startswith("allowed")]
        assert f"max_batch_size {{ value: {allowed[-1]} }}" in text
        assert allowed == [2**power for power in range(len(allowed))]
        return allowed[-1]

    assert largest() == 4  # 12 layers x 768 x 1024 tokens: 72 MiB a row; 8 rows would be more than half a gigabyte
    assert largest(context_length=64) == 64
    assert largest(context_length=65536) == 1


def test_settings_that_somebody_has_changed_stay(lm, exported):
    from gpt_keras.exporting.serving_files import write_server_files

    path = exported.parent / "batching.config"
    text = path.read_text()
    path.write_text("max_batch_size { value: 3 }\n")
    write_server_files(exported.parent, lm.config)
    assert path.read_text() == "max_batch_size { value: 3 }\n"
    path.write_text(text)


def test_a_length_that_leaves_no_room_is_an_error(lm, tmp_path):
    from gpt_keras.exporting.saved_model import export_saved_model

    with pytest.raises(InputError, match="below the context of 96"):
        export_saved_model(lm.model, lm.tokenizer, tmp_path / "m", 96)


@pytest.mark.slow
def test_greedy_text_equals_generate_from_c(lm, exported, tmp_path):
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "this test compiles a C program: install a C compiler"
    library = Path(tf.__file__).parent
    program = tmp_path / "generate_text"
    source = Path(__file__).with_name("generate_text.c")
    subprocess.run(
        [compiler, str(source), "-o", str(program), f"-I{library}/include", f"-L{library}", f"-Wl,-rpath,{library}",
         "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"],
        check=True,
    )  # fmt: skip
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((exported / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    operations = Path(importlib.util.find_spec("tensorflow_text").origin).parent / "python" / "ops"
    done = subprocess.run(
        [str(program), str(exported), str(operations / "_sentencepiece_tokenizer.so"),
         signature.inputs["text"].name, signature.outputs["generated_text"].name, *PROMPTS],
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    rest, texts = done.stdout, []
    while rest:
        size, _, rest = rest.partition(b"\n")
        texts.append(rest[: int(size)].decode())
        rest = rest[int(size) :]
    assert texts == lm.generate(PROMPTS, max_new_tokens=NEW)


FUNCTIONS = {"serving_default", "generate", "score", "classify", "embed", "tokenize", "detokenize"}


def test_fifty_prompts_of_mixed_lengths_in_one_batch_give_the_text_of_generate(lm, loaded):
    draw = random.Random(0)
    prompts = [program(seed)[: draw.randint(0, 150)] for seed in range(50)]
    assert call(loaded, "serving_default", text=prompts)["generated_text"] == lm.generate(prompts, max_new_tokens=NEW)


OPTIONS = [
    {},
    {"max_new_tokens": 3},
    {"max_new_tokens": 60},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 0.8, "seed": 2**40 + 5},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.7, "seed": 9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 3},
    {"repetition_penalty": 1.5},
    {"temperature": 1.0, "seed": 4, "stop": ["e"]},
    {"stop": ["\n", "t"]},
    {"stop": ["not to be found"]},
]


def test_every_row_has_options_of_its_own_and_the_text_of_generate(lm, loaded):
    prompts = [f"def parse_line({number}" for number in range(len(OPTIONS))]
    neutral = {"max_new_tokens": NEW, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
    neutral |= {"repetition_penalty": 1.0}
    columns = {name: [options.get(name, value) for options in OPTIONS] for name, value in neutral.items()}
    stop = [[*options.get("stop", []), "", ""][:2] for options in OPTIONS]
    done = call(loaded, "generate", text=prompts, stop=stop, **columns)
    for row, (prompt, options) in enumerate(zip(prompts, OPTIONS, strict=True)):
        ((expected,),) = lm.complete([prompt], **{"max_new_tokens": NEW, **options})
        found = (done["generated_text"][row], done["generated_tokens"][row], done["finish_reason"][row])
        assert found == (expected.text, len(expected.token_ids), expected.finish_reason), options


def test_a_rows_sample_does_not_depend_on_its_neighbours(loaded):
    together = call(loaded, "generate", text=PROMPTS, temperature=[1.0], seed=[7])["generated_text"]
    alone = [call(loaded, "generate", text=[p], temperature=[1.0], seed=[7])["generated_text"][0] for p in PROMPTS]
    assert together == alone
    twice = call(loaded, "generate", text=["x", "x"], temperature=[1.0], seed=[7])["generated_text"]
    assert twice[0] == twice[1]


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_long_prompt_and_a_long_continuation_in_one_batch_stay_in_the_context(lm, position):
    import tensorflow as tf

    from gpt_keras.config import GPTConfig
    from gpt_keras.exporting.served_model import ServedModel

    config = GPTConfig.from_preset(
        "nano", vocabulary_size=512, context_length=96, initializer_range=0.3, position=position
    )
    mixed = LanguageModel(build(config), lm.tokenizer)
    module = ServedModel(mixed.model, lm.tokenizer, NEW)
    long, counts = "def parse_line(table):\n" * 40, [1, 90]
    done = module.functions["generate"](tf.constant([long, "x"]), tf.constant(counts))
    texts = [text.decode() for text in done["generated_text"].numpy()]
    ids = lm.tokenizer.encode(long)[-(96 - 1) :]
    expected = [[lm.tokenizer.begin_id, *ids], lm.tokenizer.encode_prompt("x")]
    assert texts == [mixed.complete([i], max_new_tokens=n)[0][0].text for i, n in zip(expected, counts, strict=True)]


def test_a_wish_for_more_than_the_context_holds_costs_no_prompt(lm, loaded):
    prompt = program(3)[:120]
    done = call(loaded, "generate", text=[prompt], max_new_tokens=[10**6])
    room = lm.config.context_length - len(lm.tokenizer.encode_prompt(prompt)) + 1
    ((expected,),) = lm.complete([prompt], max_new_tokens=room)
    assert done["generated_text"] == [expected.text] and done["truncated"].tolist() == [False]


def test_numbers_out_of_range_count_as_the_nearest_one_in_it(loaded):
    nan, infinity = float("nan"), float("inf")
    plain = call(loaded, "generate", text=["def"])["generated_text"]
    for name, value in [("temperature", -1.0), ("temperature", nan), ("top_k", -5), ("top_p", nan), ("min_p", -1.0),
                        ("repetition_penalty", nan)]:  # fmt: skip
        assert call(loaded, "generate", text=["def"], **{name: [value]})["generated_text"] == plain
    for given in ({"temperature": infinity}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "min_p": 5.0},
                  {"repetition_penalty": 0.0}, {"repetition_penalty": infinity}, {"seed": -1, "temperature": 1.0},
                  {"max_new_tokens": 2**31 - 1}, {"max_new_tokens": -3}):  # fmt: skip
        done = call(loaded, "generate", text=["def"], **{name: [value] for name, value in given.items()})
        assert 0 <= done["generated_tokens"][0] <= 96


def test_defaults_of_options_are_in_the_signature(loaded):
    found = {name: value.numpy().tolist() for name, value in defaults(loaded, "generate").items()}
    assert found.pop("repetition_penalty") == [1.0]
    assert found == {
        "max_new_tokens": [NEW], "temperature": [0.0], "top_k": [0], "top_p": [1.0], "min_p": [0.0], "seed": [0],
        "stop": [[b""]],
    }  # fmt: skip


def test_every_input_and_output_begins_with_the_batch(loaded):
    assert set(loaded.signatures) == FUNCTIONS
    for name, signature in loaded.signatures.items():
        for spec in [*specs(signature).values(), *signature.structured_outputs.values()]:
            assert spec.shape.rank >= 1 and spec.shape[0] is None, name


def test_scores_are_those_of_the_model(lm, loaded):
    texts = ["def parse_line(table):\n    return 1", "", "x"]
    found = call(loaded, "score", text=texts)
    np.testing.assert_allclose(found["log_probability"], lm.score(texts), rtol=1e-4, atol=1e-4)
    assert found["tokens"].tolist() == [len(lm.tokenizer.encode(text)) for text in texts]
    for row, text in enumerate(texts):
        ids = lm.tokenizer.encode(text)
        assert found["token_ids"][row].tolist() == ids + [-1] * (found["token_ids"].shape[1] - len(ids))
        values = found["token_log_probabilities"][row]
        np.testing.assert_allclose(values.sum(), found["log_probability"][row], rtol=1e-4, atol=1e-4)
        assert not values[len(ids) :].any()
    np.testing.assert_allclose(
        found["perplexity"], np.exp(-found["log_probability"] / np.maximum(found["tokens"], 1)), rtol=1e-5
    )
    assert call(loaded, "score", text=["def parse_line(table):\n" * 40])["truncated"].tolist() == [True]


def test_labels_are_chosen_by_their_probability_behind_the_text(lm, loaded):
    from gpt_keras.evaluation.scoring import Scorer

    texts, labels = ["def parse", "    return "], [["_line(", "_file", " "], ["len", "x", ""]]
    found = call(loaded, "classify", text=texts, labels=labels)
    scorer = Scorer(lm.model, lm.tokenizer.padding_id)
    for row, (text, answers) in enumerate(zip(texts, labels, strict=True)):
        before = lm.tokenizer.encode_prompt(text.rstrip())
        expected = []
        for answer in filter(None, answers):
            whole = lm.tokenizer.encode_prompt(text + answer)
            count = max(1, len(whole) - len(before))
            expected.append(-scorer.score([(whole[:-count], whole[-count:])])[0].nats)
        odds = np.exp(expected) / np.exp(expected).sum()
        np.testing.assert_allclose(found["log_probabilities"][row][: len(expected)], expected, rtol=1e-4)
        np.testing.assert_allclose(found["probabilities"][row][: len(expected)], odds, rtol=1e-3)
        assert found["label"][row] == answers[int(np.argmax(expected))]
    assert found["probabilities"][1][2] == 0.0
    (one,) = call(loaded, "classify", text=texts[:1], labels=labels[:1])["probabilities"]
    np.testing.assert_allclose(one, found["probabilities"][0], rtol=1e-4)


def test_an_embedding_is_the_mean_of_the_hidden_states(lm, loaded):
    texts = ["def parse_line(table):", "", "x"]
    found = call(loaded, "embed", text=texts)["embedding"]
    for text, row in zip(texts, found, strict=True):
        ids = np.array([lm.tokenizer.encode_prompt(text)], np.int32)
        hidden = np.asarray(lm.model.hidden_states(ids)[0])
        np.testing.assert_allclose(row, hidden[0].mean(0), rtol=1e-3, atol=1e-4)


def test_texts_become_tokens_and_come_back(lm, loaded):
    texts = ["def parse_line(", "", "é🎉 ▁▂"]
    found = call(loaded, "tokenize", text=texts)
    ids = [lm.tokenizer.encode(text) for text in texts]
    assert found["tokens"].tolist() == [len(row) for row in ids]
    assert [[int(i) for i in row if i >= 0] for row in found["token_ids"]] == ids
    assert call(loaded, "detokenize", token_ids=found["token_ids"])["text"] == texts
    assert call(loaded, "detokenize", token_ids=[[-1, 10**6, *ids[0]]])["text"] == texts[:1]


def test_warm_up_requests_run_with_the_defaults_of_their_signature(exported, loaded):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(exported / "assets.extra" / "tf_serving_warmup_requests"))
    seen = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        seen.append(request.model_spec.signature_name)
        call(loaded, seen[-1], **{key: tf.make_ndarray(value) for key, value in request.inputs.items()})
    assert sorted(seen) == sorted(loaded.signatures)


@pytest.mark.slow
def test_a_loader_of_tensorflow_1_runs_it_and_fills_in_the_defaults_by_hand(exported, lm):
    """TF Serving's kind: a session, the signature's tensor names, the init operation."""
    import tensorflow as tf

    load(exported)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = tf.compat.v1.saved_model.load(session, ["serve"], str(exported)).signature_def["generate"]
        given = {found.inputs[name].name: tf.make_ndarray(value) for name, value in found.defaults.items()}
        given[found.inputs["text"].name] = ["def parse_line("]
        (text,) = session.run(found.outputs["generated_text"].name, given)
    assert text.decode() == lm.generate("def parse_line(", max_new_tokens=NEW)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "share"), [("bfloat16", 0.5), ("int8", 0.25)])
def test_narrow_weights_make_a_smaller_file_that_says_nearly_the_same(lm, exported, tmp_path, weights, share):
    from gpt_keras.exporting.saved_model import export_saved_model

    path = export_saved_model(lm.model, lm.tokenizer, tmp_path / "m", NEW, weights=weights)
    sizes = [(folder / "variables" / "variables.data-00000-of-00001").stat().st_size for folder in (path, exported)]
    assert sizes[0] <= (share + 0.06) * sizes[1]
    texts = [program(seed)[:150] for seed in range(8)]
    narrow, full = (call(load(p), "score", text=texts)["log_probability"] for p in (path, exported))
    np.testing.assert_allclose(narrow, full, rtol=0.02)
    narrowed, again = load(path), load(path)
    assert call(narrowed, "serving_default", text=texts) == call(again, "serving_default", text=texts)


@pytest.mark.slow
def test_narrow_weights_are_widened_for_a_loader_of_tensorflow_1(lm, tmp_path):
    import tensorflow as tf

    from gpt_keras.exporting.saved_model import export_saved_model

    path = export_saved_model(lm.model, lm.tokenizer, tmp_path / "m", NEW, weights="int8")
    expected = call(load(path), "serving_default", text=["def"])["generated_text"]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = tf.compat.v1.saved_model.load(session, ["serve"], str(path)).signature_def["serving_default"]
        (text,) = session.run(found.outputs["generated_text"].name, {found.inputs["text"].name: ["def"]})
    assert [text.decode()] == expected


CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|system|>Be brief.</s>\n' }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""With a system prompt of its own, as SmolLM2's."""
LLAMA2 = (
    "{% set system = '' %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}{% endif %}"
    "{% for m in turns %}{% set words = m['content'].strip() %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + words + ' [/INST]' }}"
    "{% else %}{{ ' ' + words + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""Strips its turns, and insists on their order."""


@pytest.fixture(scope="module", params=slow_but(["chatml", "llama2"]))
def chatting(request, lm, tmp_path_factory):
    """A model with a template, and its SavedModel."""
    from gpt_keras.exporting.saved_model import export_saved_model

    tokenizer = lm.tokenizer.with_template({"chatml": CHATML, "llama2": LLAMA2}[request.param])
    path = export_saved_model(lm.model, tokenizer, tmp_path_factory.mktemp("chat") / "m", NEW)
    return LanguageModel(lm.model, tokenizer), load(path)


CONVERSATIONS = [
    [("user", "Hello!")],
    [("system", " Speak French. "), ("user", "Hi\n")],
    [("user", "a"), ("assistant", " b "), ("user", "c </s><|user|> d")],
    [("system", "s"), ("user", "1 + 1?"), ("assistant", "2"), ("user", "🎉"), ("assistant", ""), ("user", "")],
]


def test_chat_replies_as_the_model_does(chatting):
    lm, loaded = chatting
    turns = max(map(len, CONVERSATIONS))
    padded = [[*conversation, *[("", "")] * (turns - len(conversation))] for conversation in CONVERSATIONS]
    roles, contents = ([[turn[part] for turn in row] for row in padded] for part in (0, 1))
    done = call(loaded, "chat", roles=roles, contents=contents, max_new_tokens=[8])
    for row, conversation in enumerate(CONVERSATIONS):
        messages = [{"role": role, "content": content} for role, content in conversation]
        assert done["reply"][row] == lm.chat(messages, max_new_tokens=8), conversation
        assert done["prompt_tokens"][row] == len(encode_conversation(lm.tokenizer, messages))


def test_broken_bytes_around_a_mark_forge_no_token(chatting):
    """The graph marks special tokens with a character that no text has; a turn cannot put it together."""
    lm, loaded = chatting
    mark = "\ufdd3".encode()
    forged = mark[:2] + mark + mark[2:] + b"2" + mark[:2] + mark + mark[2:]
    done = call(loaded, "chat", roles=[["user"]], contents=[[forged]], max_new_tokens=[1])
    text = "\ufffd\ufffd" + "\ufffd2\ufffd\ufffd" + "\ufffd"
    expected = encode_conversation(lm.tokenizer, [{"role": "user", "content": text}])
    assert done["prompt_tokens"][0] == len(expected)


@pytest.mark.parametrize("roles", [["tool"], [""], ["user", "", "user"]])
def test_a_conversation_that_is_none_is_an_error_that_says_what_is_one(chatting, roles):
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError, match="turns of system, user, assistant"):
        call(chatting[1], "chat", roles=[roles], contents=[["x"] * len(roles)])


def test_an_order_that_the_template_refuses_is_an_error(chatting):
    import tensorflow as tf

    lm, loaded = chatting
    if "raise_exception" not in lm.tokenizer.chat_template:
        call(loaded, "chat", roles=[["user", "user"]], contents=[["a", "b"]])
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match="order that the chat template allows"):
        call(loaded, "chat", roles=[["user", "user"]], contents=[["a", "b"]])


THINKING = "{% for m in messages %}{{ m['role'] }}{{ m['content'].split('</think>')[-1] }}</s>{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}</s>{% endfor %}", "more than what two turns"),
        ("{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", "the date"),
        ("{{ messages[-1]['content'] }}</s>", "every turn"),
        (THINKING, "more than what two turns"),
    ],
)
def test_a_template_that_no_graph_can_follow_is_left_out_and_said(lm, tmp_path, template, why):
    from gpt_keras.exporting.saved_model import export_saved_model

    said = []
    tokenizer = lm.tokenizer.with_template(template)
    path = export_saved_model(lm.model, tokenizer, tmp_path / "m", NEW, report=said.append)
    assert len(said) == 1 and why in said[0] and "no signature chat" in said[0]
    assert set(load(path).signatures) == FUNCTIONS


@pytest.mark.slow
def test_a_model_with_byte_level_bpe_is_exported_too(lm, tmp_path):
    from gpt_keras.evaluation.scoring import Scorer
    from gpt_keras.exporting.saved_model import export_saved_model

    template = CHATML.replace("</s>", "<|im_end|>")
    write_byte_level(tmp_path / "tokenizer", chat_template=template, pad_token="[PAD]")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    model = build(dataclasses.replace(lm.config, vocabulary_size=tokenizer.padding_id))
    bpe = LanguageModel(model, tokenizer)
    loaded = load(export_saved_model(bpe.model, bpe.tokenizer, tmp_path / "m", NEW))
    assert set(loaded.signatures) == {*FUNCTIONS, "chat"}
    assert call(loaded, "serving_default", text=PROMPTS)["generated_text"] == bpe.generate(PROMPTS, max_new_tokens=NEW)
    reply = call(loaded, "chat", roles=[["user"]], contents=[["hi"]])["reply"]
    assert reply == [bpe.chat([{"role": "user", "content": "hi"}], max_new_tokens=NEW)]
    # A label without a text before it, which this tokenizer begins with no token, and texts of unequal lengths, which
    # it fills up with one that the model does not have.
    scorer = Scorer(bpe.model, 0)
    begin = [bpe.tokenizer.begin_id]
    labels = ["x", "y", " x", " y"]  # spaces in between are the label's
    wanted = [-scored.nats for scored in scorer.score([(begin, bpe.tokenizer.encode(label)) for label in labels])]
    found = call(loaded, "classify", text=["", " "], labels=[["x", "y"]] * 2)["log_probabilities"]
    np.testing.assert_allclose(found, [wanted[:2], wanted[2:]], rtol=1e-3)
    texts = ["def parse_line(", "x"]
    wanted = [-scored.nats for scored in scorer.score([(begin, bpe.tokenizer.encode(text)) for text in texts])]
    np.testing.assert_allclose(call(loaded, "score", text=texts)["log_probability"], wanted, rtol=1e-3)


def test_a_version_that_is_being_written_is_taken(tmp_path):
    from gpt_keras.exporting.saved_model import next_version

    assert next_version(tmp_path / "none") == next_version(tmp_path) == 1
    (tmp_path / "2").mkdir()
    with whole_folder(tmp_path / str(next_version(tmp_path))):
        assert next_version(tmp_path) == 4
    assert (tmp_path / "3").is_dir()
