"""Trains one SentencePiece model, as a process of its own that can be ended at any time.

    python -m gpt_keras.data.sentencepiece_training FOLDER '{"input": ..., ...}'

Paths in the options are relative to FOLDER, where the model is written as `model`. The training library cannot be
interrupted from Python; `gpt_keras.data.tokenizer` runs this and ends it on Ctrl-C.
"""

import json
import os
import sys

import sentencepiece


def main(folder: str, options: str) -> int:
    os.chdir(folder)
    try:
        with open("model", "wb") as model_writer:
            sentencepiece.SentencePieceTrainer.train(**json.loads(options), model_writer=model_writer)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
