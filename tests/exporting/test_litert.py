"""A .tflite file in LiteRT-LM's contract writes what Keras writes."""

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import gpt_keras
from gpt_keras.config import GPTConfig
from gpt_keras.data.conversations import encode_conversation
from gpt_keras.data.errors import InputError
from gpt_keras.folder import save_folder
from gpt_keras.litert.engine import load_with
from gpt_keras.sampling_options import SamplingOptions

from ..conftest import build, random_ids, slow_but
from ..litert.test_decoder import LLAMA, STYLES
from ..test_commands import run

pytestmark = pytest.mark.tensorflow
SHAPE = {"vocabulary_size": 512, "num_layers": 2, "hidden_dim": 32, "num_heads": 4, "context_length": 150}
LENGTHS = [1, 2, 8, 9, 31, 45, 140]


@pytest.mark.parametrize("style", slow_but([name for name in STYLES if name != "short"], "gpt2", "qwen3"))
def test_texts_are_kerass(style, tmp_path):
    from gpt_keras.exporting.litert import export_litert

    model = build(GPTConfig(**{**SHAPE, **STYLES[style]}))
    export_litert(model, None, tmp_path / "model.tflite", "float32")
    lm = load_with(tmp_path / "model.tflite")
    prompts = [random_ids((1, length), 512, seed=length)[0].tolist() for length in LENGTHS]
    options = SamplingOptions(max_new_tokens=9)
    theirs = gpt_keras.LanguageModel(model, None).generator.complete(prompts, options)
    assert [row[0].token_ids for row in lm.generator.complete(prompts, options)] == [r[0].token_ids for r in theirs]
    beams = SamplingOptions(max_new_tokens=4, num_beams=3, num_sequences=2)
    ours, theirs = (m.generator.complete(prompts[3:5], beams) for m in (lm, gpt_keras.LanguageModel(model, None)))
    assert [[c.token_ids for c in row] for row in ours] == [[c.token_ids for c in row] for row in theirs]


def test_the_functions_are_the_contracts(tokenizer, tmp_path):
    from ai_edge_litert.compiled_model import CompiledModel

    from gpt_keras.exporting.litert import export_litert

    model = build(GPTConfig(**{**SHAPE, **LLAMA}))
    export_litert(model, tokenizer, tmp_path / "model.tflite", "int8", context_length=100)
    found = CompiledModel.from_file(str(tmp_path / "model.tflite"))
    assert set(found.get_signature_list()) == {"decode", "prefill_1", "prefill_8", "prefill_32"}
    for name, length in (("decode", 1), ("prefill_32", 32)):
        inputs = {k: tuple(v["shape"]) for k, v in found.get_input_tensor_details(name).items()}
        cache = {f"kv_cache_{part}_{layer}": (1, 100, 2, 8) for part in "kv" for layer in range(2)}
        assert inputs == {"tokens": (1, length), "input_pos": (length,), "mask": (1, 1, length, 100), **cache}
        outputs = {k: tuple(v["shape"]) for k, v in found.get_output_tensor_details(name).items()}
        assert outputs == {**cache, **({"logits": (1, 1, 512)} if name == "decode" else {})}
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        assert {"gpt_config.json", "tokenizer.model", "generation_config.json"} <= set(archive.namelist())


@pytest.mark.slow
def test_the_command_and_what_runs_its_file(tokenizer, tmp_path):
    config = GPTConfig(**{**SHAPE, **LLAMA})
    save_folder(build(config), tokenizer, tmp_path / "model")
    file = tmp_path / "small.tflite"
    done = run("export", tmp_path / "model", "--format", "litert", "--weights", "float32", "--output", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[-1] == str(file)
    written = run("generate", file, "--prompt", "def main(", "--max-new-tokens", 12)
    expected = gpt_keras.load(tmp_path / "model", dtype="float32").generate("def main(", max_new_tokens=12)
    assert (written.returncode, written.stdout.decode(), written.stderr) == (0, expected + "\n", b"")
    for arguments, message in (
        (["--format", "litert", "--output", tmp_path / "x"], "name the .tflite file"),
        (["--format", "litert", "--output", file, "--weights", "bfloat16"], "float32, int8, int4"),
        (["--format", "litert", "--output", file, "--context-length", 151], "context of 150"),
        (["--format", "saved_model", "--output", tmp_path / "s", "--context-length", 20], "for --format litert"),
    ):
        done = run("export", tmp_path / "model", *arguments)
        assert done.returncode == 2 and message in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_the_card_says_what_it_is_and_how_it_was_measured(tokenizer, tmp_path):
    from gpt_keras.exporting.litert import export_litert

    model = build(GPTConfig(**{**SHAPE, **LLAMA, "initializer_range": 0.3}))
    file, agreement = tmp_path / "model.tflite", {}
    for weights in ("float32", "int8", "int4"):
        export_litert(model, tokenizer, file, weights, context_length=100)
        card = (tmp_path / "model.tflite.md").read_text("utf-8")
        assert f"| weights | {weights} |" in card and "| context | 100 tokens, of the model's 150 |" in card
        assert f"| parameters | {model.count_params():,} |" in card
        assert f"| all | {file.stat().st_size:,} | |" in card
        parts = re.findall(r"^\| ([a-z -]+) \| ([\d,]+) \| [\d.]+% \|$", card, re.M)
        assert sum(int(size.replace(",", "")) for _, size in parts) == file.stat().st_size
        assert re.search(r"[1-9][\d,]* tokens/s written, a prompt of 100 read at [1-9][\d,]* tokens/s", card)
        agreement[weights] = float(re.search(r"most probable token in ([\d.]+)% of the places", card)[1])
    assert agreement["float32"] == 100 and agreement["int4"] < agreement["int8"] and agreement["int8"] > 90


@pytest.mark.slow
def test_a_token_without_embedding_does_no_harm_in_8_bits(tmp_path):
    """Rows of zeros, as padding tokens often have, are rounded like others."""
    from gpt_keras.exporting.litert import export_litert

    model = build(GPTConfig(**{**SHAPE, **LLAMA}))
    table = np.array(model.embedding.token_embedding)
    table[0] = 0
    model.embedding.token_embedding.assign(table)
    export_litert(model, None, tmp_path / "model.tflite", "int8", context_length=40)
    rows = load_with(tmp_path / "model.tflite").decoder.start([[0, 0, 7, 0]], 4)
    expected = np.asarray(model(np.array([[0, 0, 7, 0]])))[0, -1]
    assert np.isfinite(rows.logits).all()
    assert np.linalg.norm(rows.logits[0] - expected) < 0.05 * np.linalg.norm(expected)


def test_a_damaged_or_foreign_file_is_told(tmp_path):
    (tmp_path / "x.tflite").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match="not a whole LiteRT file of this project"):
        load_with(tmp_path / "x.tflite")
    with pytest.raises(InputError, match="no such file"):
        load_with(tmp_path / "y.tflite")
    with pytest.raises(InputError, match="which generate and chat run"):
        gpt_keras.load(tmp_path / "x.tflite")


ENGINE = """
import json, sys
import litert_lm

litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
engine = litert_lm.Engine(sys.argv[1], backend=litert_lm.Backend.CPU(), cache_dir=":nocache")
texts = []
for prompt in json.loads(sys.argv[2]):
    session = engine.create_session(apply_prompt_template=False, max_output_tokens=12)
    session.run_prefill([prompt])
    texts.append(session.run_decode().texts[0])
    session.close()
print(json.dumps(texts))
"""


@pytest.mark.parametrize("weights", slow_but(["float32", "int8", "int4"], "float32"))
def test_googles_engine_writes_what_ours_does(weights, tokenizer, tmp_path):
    """The bundle, in the engine that phones have, by its own Python package. In float32 Keras writes the same, else the
    file of the same weights."""
    model = build(GPTConfig(**{**SHAPE, **LLAMA, "tie_embeddings": False, "initializer_range": 0.3}))
    table = np.array(model.output_head.table)
    for token in range(512):  # single bytes are often no text, of which each makes its own
        if tokenizer.piece(token).startswith("<"):
            table[token] = 0
    model.output_head.table.assign(table)
    save_folder(model, tokenizer, tmp_path / "model")
    bundle = tmp_path / "small.litertlm"
    done = run("export", tmp_path / "model", "--format", "litertlm", "--weights", weights, "--output", bundle)
    assert done.returncode == 0, done.stderr
    prompts = ["def main(", "import os\n", "x", "for name in names:\n    ", "return len(table)\n\n\ndef ", "é"]
    command = [sys.executable, "-c", ENGINE, bundle, json.dumps(prompts)]
    found = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    lm = gpt_keras.load(tmp_path / "model", dtype="float32")
    if weights != "float32":
        from gpt_keras.exporting.litert import export_litert

        export_litert(lm.model, lm.tokenizer, tmp_path / "small.tflite", weights, SHAPE["context_length"])
        lm = load_with(tmp_path / "small.tflite")
    ours = lm.generate(prompts, max_new_tokens=12)
    theirs = json.loads(found.stdout.decode().splitlines()[-1])
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert len(set(ours)) > 3 and same >= len(ours) - (weights != "float32")  # which processors round in their own ways


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "qwen3"])
def test_googles_engine_knows_byte_level_tokenizers(style, tmp_path):
    """And other shapes than llama's."""
    from ..test_gguf import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    model = build(GPTConfig(**{**SHAPE, **STYLES[style], "tie_embeddings": False, "initializer_range": 0.3}))
    table = np.array(model.output_head.table)
    for token in range(512):  # what is no text, of which each makes its own
        spelled = tokenizer.token_bytes(token) if token < tokenizer.vocabulary_size else b""
        if not (spelled and spelled.isascii() and spelled.decode().isprintable()):
            table[token] = 0
    model.output_head.table.assign(table)
    save_folder(model, tokenizer, tmp_path / "model")
    bundle = tmp_path / "small.litertlm"
    done = run("export", tmp_path / "model", "--format", "litertlm", "--output", bundle)
    assert done.returncode == 0, done.stderr
    prompts = ["def main(", "import os\n", "x", "for name in names:\n    ", "é"]
    command = [sys.executable, "-c", ENGINE, bundle, json.dumps(prompts)]
    found = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    ours = gpt_keras.load(tmp_path / "model", dtype="float32").generate(prompts, max_new_tokens=12)
    assert len(set(ours)) > 3 and json.loads(found.stdout.decode().splitlines()[-1]) == ours


CHAT = """
import json, sys
import litert_lm

litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
engine = litert_lm.Engine(sys.argv[1], backend=litert_lm.Backend.CPU(), cache_dir=":nocache")
texts = []
for turns in json.loads(sys.argv[2]):
    with engine.create_conversation(messages=turns[:-1] or None, max_output_tokens=12) as conversation:
        answer = conversation.send_message(turns[-1]["content"])
    texts.append("".join(part["text"] for part in answer["content"]))
print(json.dumps(texts))
"""


@pytest.mark.parametrize("begins", slow_but([True, False], True))
def test_googles_engine_answers_as_keras_does(begins, tokenizer, tmp_path):
    """Conversations, by the chat template in the bundle; also where the template writes the begin token itself."""
    model = build(GPTConfig(**{**SHAPE, **LLAMA, "tie_embeddings": False, "initializer_range": 0.3}))
    table = np.array(model.output_head.table)
    for token in range(512):
        if tokenizer.piece(token).startswith("<"):
            table[token] = 0
    model.output_head.table.assign(table)
    turn = "{{ '\\n' + turn['role'] + ': ' + turn['content'] }}"
    template = f"{{% for turn in messages %}}{turn}{{% endfor %}}{{{{ '\\nassistant:' }}}}"
    begin = next(piece for piece, token in tokenizer.special.items() if token == tokenizer.begin_id)
    tokenizer = tokenizer.with_template(begin * begins + template)
    save_folder(model, tokenizer, tmp_path / "model")
    bundle = tmp_path / "small.litertlm"
    done = run("export", tmp_path / "model", "--format", "litertlm", "--output", bundle)
    assert done.returncode == 0, done.stderr
    spoken = (("user", "def main("), ("assistant", "x"), ("user", "y"))
    turns = [{"role": role, "content": content} for role, content in spoken]
    conversations = [turns[:1], turns, [{"role": "system", "content": "short"}, *turns]]
    command = [sys.executable, "-c", CHAT, bundle, json.dumps(conversations)]
    found = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    lm = gpt_keras.load(tmp_path / "model", dtype="float32")
    begun = [encode_conversation(lm.text_tokenizer, turns) for turns in conversations]
    assert all(ids[:2].count(tokenizer.begin_id) == 1 for ids in begun)  # as the engine does
    ours = [c[0].text for c in lm.chat_generator.complete(begun, SamplingOptions(max_new_tokens=12))]
    assert len(set(ours)) == 3 and json.loads(found.stdout.decode().splitlines()[-1]) == ours
