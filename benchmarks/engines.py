"""What other engines make of a model folder, none of which needs an exporter of this project.

    python -m benchmarks.engines [MODEL] [--engines onnxruntime openvino llama.cpp] [--texts 20] [--new-tokens 64]
        [--environments FOLDER] [--json]

Each engine gets a virtual environment of its own (they want other versions of the same packages), made with pip where
there is none yet, and a process in it that imports nothing of gpt_keras: it opens the folder, continues so many prompts
greedily, and says how many tokens a second it wrote. How many of the texts are the same as Keras's in float32, and how
many of the tokens before the first that differs, is what is shown. What an engine cannot do is shown as what it said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report

WORDS = "city river mountain sea empire church railway school bank bridge castle garden village island forest desert"
_WRITE = """
import importlib.metadata, json, sys, time
asked = json.load(sys.stdin)
texts, seconds = [], 0.0
for prompt in asked["prompts"]:
    start = time.perf_counter()
    texts.append(write(prompt, asked["new_tokens"]))
    seconds += time.perf_counter() - start
found = {"texts": texts, "speed": sum(map(len, texts)) / seconds}
print(json.dumps({**found, "versions": {name: importlib.metadata.version(name) for name in sys.argv[3:]}}))
"""
_TRANSFORMERS = """
import sys, torch
from {module} import {name}
model = {name}.from_pretrained(sys.argv[1], export=True{options})
def write(prompt, new_tokens):
    ids = torch.tensor([prompt])
    given = {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    done = model.generate(**given, max_new_tokens=new_tokens, do_sample=False)
    return done[0, len(prompt):].tolist()
"""


@dataclass(frozen=True)
class Engine:
    """One of them.

    Attributes:
        packages: What pip installs for it.
        versions_of: Packages whose versions are told.
        unwanted: What pip installs with them, and text does without: it is of another build than torch.
        script: Defines `write(prompt, new_tokens)`, both in token ids, for the model folder `sys.argv[1]` or the GGUF
            file `sys.argv[2]`.
    """

    packages: tuple[str, ...]
    versions_of: tuple[str, ...]
    script: str
    unwanted: tuple[str, ...] = ()


ENGINES = {
    "onnxruntime": Engine(
        ("optimum-onnx[onnxruntime]", "torch==2.13.0"),
        ("onnxruntime", "optimum-onnx"),
        _TRANSFORMERS.format(module="optimum.onnxruntime", name="ORTModelForCausalLM", options=""),
    ),
    "openvino": Engine(
        ("optimum-intel[openvino]", "torch==2.13.0"),
        ("openvino", "optimum-intel"),
        _TRANSFORMERS.format(
            module="optimum.intel", name="OVModelForCausalLM", options=", ov_config={'INFERENCE_PRECISION_HINT': 'f32'}"
        ),
        unwanted=("torchvision",),
    ),
    "llama.cpp": Engine(
        ("llama-cpp-python",),
        ("llama-cpp-python",),
        """
import sys, llama_cpp
model = llama_cpp.Llama(sys.argv[2], n_ctx=256, verbose=False)
def write(prompt, new_tokens):
    found = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if token == model.token_eos() or len(found) == new_tokens:
            break
        found.append(token)
    model.reset()
    return found
""",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a model folder or .gguf file (default: smollm2)")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--environments", type=Path, help="where environments are kept (default: for this run alone)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpt_keras_engines_") as temporary:
        compare(options, Path(temporary))


def compare(options: argparse.Namespace, temporary: Path) -> None:
    """Ask all, and print what was found."""
    import gpt_keras
    from gpt_keras.exporting.gguf import export_gguf

    lm = gpt_keras.load(options.model, dtype="float32")
    folder, gguf = temporary / "model", temporary / "model.gguf"
    lm.save(folder)
    export_gguf(lm.model, lm.text_tokenizer, gguf, "f32")
    encode = lm.generator.encode
    words, kinds = WORDS.split(), ("history", "name", "people", "future")
    texts = [f"The {kind} of the {word} begins" for kind in kinds for word in words]
    prompts = [encode(text) for text in texts[: options.texts]]
    expected = [c[0].token_ids for c in lm.complete(prompts, max_new_tokens=options.new_tokens)]
    question = json.dumps({"prompts": prompts, "new_tokens": options.new_tokens})
    rows = [
        [f"{options.model}, {options.texts} texts of {options.new_tokens} tokens", "same texts", "tokens", "tokens/s"]
    ]
    results: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for name in options.engines:
        try:
            python = environment((options.environments or temporary) / name, ENGINES[name])
            script, packages = ENGINES[name].script + _WRITE, ENGINES[name].versions_of
            answer = run([str(python), "-c", script, str(folder), str(gguf), *packages], question)
        except RuntimeError as error:
            rows.append([name, str(error)])
            continue
        found = json.loads(answer.splitlines()[-1])
        versions |= found["versions"]
        ends = lm.generator.end_ids
        written = [[token for token in text if token not in ends] for text in found["texts"]]
        same = sum(ours == theirs for ours, theirs in zip(expected, written, strict=True))
        agreed = sum(shared(*pair) for pair in zip(expected, written, strict=True)) / sum(map(len, expected))
        rows.append([name, f"{same} of {len(written)}", f"{agreed:.1%}", f"{found['speed']:.0f}"])
        results += [
            report.result(name, "texts that are the same", 100 * same / len(written), "%"),
            report.result(name, "tokens before the first that differs", 100 * agreed, "%"),
            report.result(name, "one text at a time", found["speed"], "tokens/s"),
        ]
    report.print_table(rows)
    if options.json:
        report.print_json("engines", results, ("keras", "tensorflow"), versions)


def shared(ours: list[int], theirs: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def environment(folder: Path, engine: Engine) -> Path:
    """The Python of an environment with the engine's packages.

    Raises:
        RuntimeError: They cannot be installed together.
    """
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        run([str(python), "-m", "pip", "install", "--quiet", *engine.packages])
        if engine.unwanted:
            run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *engine.unwanted])
        (folder / "complete").touch()
    return python


def run(command: list[str], question: str = "") -> str:
    """What a command prints.

    Raises:
        RuntimeError: It failed; the last line that it wrote is the message.
    """
    done = subprocess.run(command, input=question, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200])
    return done.stdout


if __name__ == "__main__":
    main()
