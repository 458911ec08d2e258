"""Continue a text, printed as it is made, or a file of prompts.

    python -m gpt_keras.generate runs/default/model --prompt "def main("
    python -m gpt_keras.generate runs/default/model --prompt "import " --temperature 0.8 --top-k 50 --seed 1
    python -m gpt_keras.generate runs/default/model --prompts prompts.txt --output completions.jsonl --batch-size 16

Only the continuation goes to standard output; on a terminal the prompt is shown before it. With --prompts every line
of the file is a prompt (or, in a .jsonl file, an object with the field "prompt"), and every line of the output is
{"prompt", "completions": [{"text", "finish_reason", ...}]}.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.sampling_options import SamplingOptions


@dataclass
class GenerateOptions:
    """Options of `python -m gpt_keras.generate`.

    Args:
        model: A model folder, a .gguf file, hf:ORG/NAME or smollm2.
        prompt: The text to continue.
        prompts: A file of prompts instead, a line each; in a .jsonl file the field "prompt" of each object.
        output: With --prompts, the .jsonl file to write instead of standard output.
        batch_size: With --prompts, how many are continued at once.
        max_new_tokens: Stop after this many tokens; by default after 128 (or min_new_tokens, if that is more), or
            where the context is full.
        min_new_tokens: Do not end before this many.
        temperature: 0 is greedy; below 1 sharper, above 1 flatter.
        top_k: Draw from this many most probable tokens; 0 from all.
        top_p: Draw from the most probable tokens that make up this much probability; 1 from all.
        min_p: Draw from tokens at least this many times as probable as the most probable one; 0 from all.
        repetition_penalty: Above 1 makes tokens that were there before less probable.
        presence_penalty: Taken from the logits of tokens that the continuation has.
        frequency_penalty: Taken from them for each time that it has them.
        no_repeat_ngram_size: No run of this many tokens comes twice; 0 is off.
        banned_tokens: Token ids that are never chosen, as a list like [1,2].
        allowed_tokens: The only token ids that are chosen.
        stop: A string before which the text ends, or several as a JSON list like ["END", "STOP"].
        regex: The text matches this regular expression.
        json_schema: The text is JSON that the schema in this file allows.
        num_sequences: Continuations of each prompt.
        num_beams: Beam search over this many; 1 is none.
        length_penalty: Beams are ranked by log-probability / length ** this.
        log_probabilities: With --prompts, also write the tokens and their log-probabilities.
        seed: The same seed gives the same text for a prompt, whatever else is in the file; equal prompts get different
            ones.
        sliding: When the context is full, go on with its newer half instead of refusing.
        engine: What runs the model on a CPU: keras; litert, which starts faster and runs faster, after making a file
            once; litert-int8, much faster, and less exact; or auto, which is litert where that file is there already.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
    """

    POSITIONAL: ClassVar = ("model",)
    TEXTS: ClassVar = ("prompt", "stop", "regex")
    model: str
    prompt: str | None = None
    prompts: Path | None = None
    output: Path | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    banned_tokens: list[int] = dataclasses.field(default_factory=list)
    allowed_tokens: list[int] | None = None
    stop: list[str] | str = dataclasses.field(default_factory=list)
    regex: str | None = None
    json_schema: Path | None = None
    num_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    log_probabilities: bool = False
    seed: int = 0
    sliding: bool = False
    engine: Literal["auto", "keras", "litert", "litert-int8"] = "auto"
    backend: Literal["tensorflow", "jax"] | None = None


def main(options: GenerateOptions) -> None:
    if (options.prompt is None) == (options.prompts is None):
        raise InputError("give either --prompt TEXT or --prompts FILE")
    if options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    prompts = read_prompts(options.prompts) if options.prompts is not None else []
    names = {field.name for field in dataclasses.fields(SamplingOptions)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if options.json_schema is not None:
        given["json_schema"] = _read(options.json_schema)
    sampling = SamplingOptions(**given)
    start_backend(choose_backend(options.backend))
    from gpt_keras.litert.engine import load_with

    lm = load_with(options.model, options.engine, make=False, say=lambda line: print(line, file=sys.stderr))
    if options.prompt is not None:
        continue_one(lm, options.prompt, sampling)
    elif options.output is None:
        for line in continue_all(lm, prompts, sampling, options.batch_size):
            print(line, flush=True)
    else:
        with whole_file(options.output) as partial, open(partial, "w", encoding="utf-8", newline="\n") as stream:
            for line in continue_all(lm, prompts, sampling, options.batch_size):
                stream.write(line + "\n")
        print(options.output)


def continue_one(lm: Any, prompt: str, sampling: Any) -> None:
    """Print the continuation, as it is made where it can be."""
    if sys.stdout.isatty():
        print(f"\033[2m{prompt}\033[0m", end="", flush=True)
    if sampling.num_beams == sampling.num_sequences == 1:
        for text in lm.generator.stream(prompt, sampling):
            sys.stdout.buffer.write(text.encode())
            sys.stdout.flush()
        print(flush=True)
        return
    for completion in lm.generator.complete([lm.generator.encode(prompt)], sampling)[0]:
        sys.stdout.buffer.write(completion.text.encode() + b"\n")
    sys.stdout.flush()


def continue_all(lm: Any, prompts: list[str], sampling: Any, batch_size: int) -> Iterator[str]:
    """A line of JSON for each prompt, with progress on standard error."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    encoded = [lm.generator.encode(prompt) for prompt in prompts]
    for row, ids in enumerate(encoded):  # before any work is done
        lm.generator.limit(row, ids, sampling)
    starts, before = range(0, len(prompts), batch_size), Counter[tuple[int, ...]]()
    for start in track(starts, console=console, transient=True, disable=not console.is_terminal):
        batch = slice(start, start + batch_size)
        found = lm.generator.complete(encoded[batch], sampling, before)
        for prompt, completions in zip(prompts[batch], found, strict=True):
            fields = [{k: v for k, v in vars(c).items() if v is not None} for c in completions]
            if not sampling.log_probabilities:
                fields = [{k: v for k, v in c.items() if k != "token_ids"} for c in fields]
            yield json.dumps({"prompt": prompt, "completions": fields}, ensure_ascii=False)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file.

    Raises:
        InputError: It cannot be read, is empty, or a line of a .jsonl file has no text under "prompt".
    """
    lines = [(number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: there is no prompt in it")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            prompts.append(json.loads(line)["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}, line {number}: expected an object with a "prompt" ({error})') from error
        if not isinstance(prompts[-1], str):
            raise InputError(f'{path}, line {number}: "prompt" must be text')
    return prompts


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def cli() -> int:
    return command.run(main, GenerateOptions, "python -m gpt_keras.generate")


if __name__ == "__main__":
    sys.exit(cli())
