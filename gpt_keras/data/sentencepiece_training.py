"""Trains one SentencePiece model, as a process of its own that can be ended at any time.

    python -m gpt_keras.data.sentencepiece_training OUTPUT '{"input": ..., ...}'

The training library cannot be interrupted from Python; `gpt_keras.data.tokenizer` runs this and ends it on Ctrl-C.
"""

import json
import sys
from pathlib import Path

import sentencepiece


def main(output: str, options: str) -> int:
    try:
        with open(output, "wb") as model_writer:
            sentencepiece.SentencePieceTrainer.train(**json.loads(options), model_writer=model_writer)
    except (RuntimeError, OSError) as error:
        Path(output).unlink(missing_ok=True)
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
