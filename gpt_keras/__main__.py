"""All commands under one name: `gpt-keras train ...` is `python -m gpt_keras.train ...`.

gpt-keras generate runs/default/model --prompt "def main("
python -m gpt_keras --help
"""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "train": "pre-train a GPT on text",
    "finetune": "teach a model a task",
    "generate": "let a model write",
    "chat": "talk to a model",
    "evaluate": "measure a model on a task",
    "inspect": "see where a model looks",
    "export": "for TF Serving, phones, llama.cpp, Hugging Face",
    "serve": "answer requests, and a page to chat on",
    "corpus": "prepare a large corpus once",
    "tokenizer": "train a tokenizer",
    "completion": "have a shell complete all this",
}


def main() -> int:
    """Run the command that the first argument names; its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: gpt-keras COMMAND ...\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        print("\ngpt-keras COMMAND --help says more")
        return 0
    if name == "--version":
        print(importlib.import_module("gpt_keras").__version__)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name}; {hint}", file=sys.stderr)
        return 2
    del sys.argv[1]
    sys.path.append("")  # the current folder, for functions that options name
    return int(importlib.import_module(f"gpt_keras.{name}").cli())


if __name__ == "__main__":
    sys.exit(main())
