"""What a vocabulary's size and kind are worth: bytes of held-out text per token, beside a byte-level BPE of its size.

    python -m benchmarks.tokenizers [--source SOURCE] [--sizes 2048 8192 32768] [--sample-mb 20] [--quick] [--json]

All are trained on the same sample of the training part of SOURCE (by default the Python that runs this) and score the
same held-out documents. The peer is what Hugging Face's `tokenizers` trains as GPT-2's. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from benchmarks import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="python-stdlib")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--sample-mb", type=float, default=20)
    parser.add_argument("--quick", action="store_true", help="two sizes, 2 MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.sample_mb = [1024, 4096], 2
    sample, held_out = divided(options.source, int(options.sample_mb * 1e6))
    size = sum(len(text.encode()) for text in held_out)
    rows = [["pieces", "bpe", "unigram", "tokenizers", "seconds: bpe", "unigram", "tokenizers"]]
    results = []
    for pieces in options.sizes:
        figures, times = [], []
        for system, count in (("bpe", ours), ("unigram", ours), ("tokenizers", peer)):
            start = time.perf_counter()
            try:
                tokens, trained = count(sample, held_out, pieces, system)
            except ValueError:  # the sample does not bear so many pieces
                figures.append("-")
                times.append("-")
                continue
            figures.append(f"{size / tokens:.3f}")
            times.append(f"{trained - start:.1f}")
            name = system if system == "tokenizers" else f"gpt_keras {system}"
            results.append(report.result(name, f"{pieces} pieces", size / tokens, "bytes/token"))
        rows.append([f"{pieces:,}", *figures, *times])
    print(f"bytes per token on {size / 1e6:.2f} MB held out; {sum(map(len, sample)) / 1e6:.1f} MB to train on")
    report.print_table(rows)
    if options.json:
        report.print_json("tokenizers", results, ("sentencepiece", "tokenizers"))


def divided(source: str, sample_bytes: int) -> tuple[list[str], list[str]]:
    """A sample of the training part, and the held-out part."""
    from gpt_keras.data.preparation import prepare
    from gpt_keras.data.sentencepiece_tokenizer import train_tokenizer
    from gpt_keras.data.sources import open_source

    with tempfile.TemporaryDirectory() as folder:
        any_tokenizer = train_tokenizer([document.text for document in open_source(source)()][:100], 400)
        corpus = prepare(source, any_tokenizer, f"{folder}/corpus")
        held_out = [document.text for document in corpus.held_out_documents()]
    hidden = set(held_out)
    sample, used = [], 0
    for document in open_source(source)():
        if document.text not in hidden and used < sample_bytes:
            sample.append(document.text)
            used += len(document.text)
    return sample, held_out


def ours(sample: list[str], held_out: list[str], pieces: int, kind: str) -> tuple[int, float]:
    """Tokens of the held-out text, and when training was done."""
    from gpt_keras.data.sentencepiece_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(sample, pieces, kind)
    trained = time.perf_counter()
    return sum(map(len, tokenizer.encode_batch(held_out))), trained


def peer(sample: list[str], held_out: list[str], pieces: int, _: str) -> tuple[int, float]:
    """As `ours`."""
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(sample, vocab_size=pieces, min_frequency=1, show_progress=False)
    trained = time.perf_counter()
    return sum(len(tokenizer.encode(text).ids) for text in held_out), trained


if __name__ == "__main__":
    main()
