"""The SavedModel as its users meet it: in a process without Keras, and from C."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_keras.data.errors import InputError
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.language_model import LanguageModel

from ..conftest import build

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


def generate_without_keras(exported, prompts, how="together") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, str(exported), json.dumps(prompts), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [text for line in done.stdout.splitlines() for text in json.loads(line)]


@pytest.mark.parametrize("how", ["together", "one by one"])
def test_greedy_text_equals_generate_without_keras(lm, exported, how):
    assert generate_without_keras(exported, PROMPTS, how) == lm.generate(PROMPTS, max_new_tokens=NEW)


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


def test_an_empty_batch_gives_an_empty_batch(exported):
    import tensorflow as tf

    from gpt_keras.data.graph_tokenizer import load_operations

    load_operations()
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    assert signature(text=tf.constant([], tf.string))["generated_text"].shape == (0,)


def test_a_text_too_long_is_continued_from_its_last_tokens(lm, exported):
    long = "def parse_line(table):\n" * 40
    ids = lm.tokenizer.encode(long)[-(lm.config.context_length - NEW - 1) :]
    rows = lm.generator.tokens([[lm.tokenizer.begin_id, *ids]], _options())
    expected = lm.tokenizer.decode([row[0] for row in rows if row[0] is not None])
    assert generate_without_keras(exported, [long, "x"])[0] == expected


def _options():
    from gpt_keras.generation import SamplingOptions

    return SamplingOptions(max_new_tokens=NEW)


def test_the_export_holds_the_weights_once(lm, exported):
    weights = sum(4 * weight.numpy().size for weight in lm.model.weights)
    size = sum(file.stat().st_size for file in exported.rglob("*") if file.is_file())
    assert size <= 1.05 * weights + 3e6


def test_the_graph_needs_nothing_but_tensorflow_and_tensorflow_text(exported):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((exported / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    operations = {node.op for function in graph.library.function for node in function.node_def}
    assert not {op for op in operations if op.startswith("Xla") or op in ("PyFunc", "EagerPyFunc")}
    assert not any("_XlaMustCompile" in f.attr and f.attr["_XlaMustCompile"].b for f in graph.library.function)


def test_versions_count_up_and_nothing_half_written_is_seen(lm, exported):
    from gpt_keras.exporting.saved_model import export_saved_model

    second = export_saved_model(lm.model, lm.tokenizer, exported.parent, NEW)
    assert second == exported.parent / "2"
    assert sorted(path.name for path in exported.parent.iterdir()) == ["1", "2"]


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
    import importlib.util

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
