"""Speed of data: preparing a corpus beside sentencepiece and datasets, reading batches beside nanoGPT's loader.

    python -m benchmarks.data [--text FILE] [--megabytes 500] [--vocabulary-size 32768] [--quick] [--json]
    python -m benchmarks.data --beam --megabytes 50 [--document-characters 2500]  # one worker each

The text is FILE (by default the Python that runs this) again and again, with a number behind every twentieth word, so
that it is not the same words over and over. All get the same documents, in JSON lines, and tokenizers of the same
number of pieces, trained on the same sample. Each system runs in a process of its own, in turns; figures are the best
of all turns. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import report

PREPARING = ("gpt_keras", "sentencepiece one process", "datasets tokenizers")
BEAM = ("gpt_keras one worker", "gpt_keras beam one worker")
READING = ("gpt_keras", "gpt_keras mask", "nanogpt torch memmap")
BATCH, CONTEXT = 16, 1024
SHARDS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="python-stdlib")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--vocabulary-size", type=int, default=32768)
    parser.add_argument("--document-characters", type=int, help="cut documents to this length")
    parser.add_argument("--beam", action="store_true", help="only compare preparing on Beam with preparing here")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="20 MB, 8192 pieces, one turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.vocabulary_size, options.turns = 20, 8192, 1
    if options.system:
        kind, _, system = options.system.partition(" ")
        measure = {"prepare": preparing, "read": reading, "open": opening, "seek": seeking}[kind]
        with contextlib.redirect_stdout(sys.stderr):
            figure = measure(system, options.folder)
        print(json.dumps(figure))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    write_text(options.text, options.megabytes * 1_000_000, folder / "text.jsonl", options.document_characters)
    train_tokenizers(options.vocabulary_size, folder)

    def best(kind: str, systems: tuple[str, ...], choose: Callable[[float, float], float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for _, system in itertools.product(range(options.turns), systems):
            try:
                arguments = ["--system", f"{kind} {system}", "--folder", str(folder)]
                figure = float(report.in_own_process("benchmarks.data", arguments, {"CUDA_VISIBLE_DEVICES": "-1"}))
            except report.SystemFailedError as error:
                sys.exit(f"{system}: {error}")
            found[system] = choose(found.get(system, figure), figure)
        return found

    results = []
    if options.beam:
        rates = best("prepare", BEAM, max)
        rows = [["preparing", "MB/s"], *([system, f"{rate:.1f}"] for system, rate in rates.items())]
        report.print_table(rows)
        if options.json:
            case = f"preparing {options.megabytes} MB"
            results = [report.result(system, case, rate, "MB/s") for system, rate in rates.items()]
            report.print_json("data", results, ("apache-beam",))
        return
    prepared = best("prepare", PREPARING, max)
    rows = [["preparing", "MB/s", "of one sentencepiece"]]
    for system, rate in prepared.items():
        rows.append([system, f"{rate:.1f}", f"{rate / prepared['sentencepiece one process']:.2f}x"])
        results.append(report.result(system, f"preparing {options.megabytes} MB", rate, "MB/s"))
    report.print_table(rows)
    read = best("read", READING, max)
    rows = [[f"reading {BATCH} x {CONTEXT}", "million tokens/s", "of nanogpt"]]
    for system, rate in read.items():
        rows.append([system, f"{rate:.1f}", f"{rate / read['nanogpt torch memmap']:.2f}x"])
        results.append(report.result(system, f"reading {BATCH} x {CONTEXT}", rate, "million tokens/s"))
    print()
    report.print_table(rows)
    rows = [["gpt_keras", "milliseconds"]]
    waits = {
        f"opening {SHARDS} shards": best("open", ("gpt_keras",), min)["gpt_keras"],
        **{f"first batch: {n}": s for n, s in best("seek", ("0", "10000000"), min).items()},
    }
    for case, seconds in waits.items():
        rows.append([case, f"{1000 * seconds:.1f}"])
        results.append(report.result("gpt_keras", case, 1000 * seconds, "ms"))
    print()
    report.print_table(rows)
    if options.json:
        packages = ("sentencepiece", "datasets", "tokenizers", "torch", "tensorflow", "numpy")
        report.print_json("data", results, packages)


def write_text(source: str, size: int, path: Path, characters: int | None = None) -> None:
    """Documents of `source`, cut to so many characters, again and again, salted, until there are `size` bytes."""
    from gpt_keras.data.sources import open_source

    documents = [document.text for document in open_source(source)()]
    if characters is not None:
        documents = [text[i : i + characters] for text in documents for i in range(0, len(text), characters)]
    draw, words, written = random.Random(0), re.compile(r"\w+"), 0
    with open(path, "w", encoding="utf-8") as stream:
        for text in itertools.cycle(documents):
            count = itertools.count(draw.randrange(20))
            text = words.sub(lambda m: m[0] if next(count) % 20 else f"{m[0]}{draw.randrange(10**6)}", text)  # noqa: B023
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= size:
                return


def texts(folder: Path) -> Iterator[str]:
    with open(folder / "text.jsonl", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def train_tokenizers(vocabulary_size: int, folder: Path) -> None:
    """Ours, and a byte-level BPE as GPT-2's for the peer, from the first 20 MB."""
    import tokenizers

    from gpt_keras.data.sentencepiece_tokenizer import train_tokenizer

    sizes = itertools.accumulate(len(text) for text in texts(folder))
    sample = [text for text, size in zip(texts(folder), sizes, strict=False) if size < 20_000_000]
    train_tokenizer(sample, vocabulary_size).save(folder / "tokenizer.model")
    peer = tokenizers.ByteLevelBPETokenizer()
    peer.train_from_iterator(sample, vocab_size=vocabulary_size, special_tokens=["<s>", "</s>"], show_progress=False)
    peer.save(str(folder / "tokenizer.json"))


# === Each in a process of its own ===


def preparing(system: str, folder: Path) -> float:
    """MB of text a second, from JSON lines to token ids on disk."""
    size = sum(len(text.encode()) for text in texts(folder)) / 1e6
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if system.startswith("gpt_keras"):
            from gpt_keras.data.cleaning import CleaningOptions
            from gpt_keras.data.preparation import PreparationOptions, prepare
            from gpt_keras.data.tokenizer import Tokenizer

            tokenizer = Tokenizer.load(folder / "tokenizer.model")
            one_worker = PreparationOptions(cleaning=CleaningOptions(deduplicate="near"), workers=1)
            start = time.perf_counter()
            if system == "gpt_keras":
                prepare(str(folder / "text.jsonl"), tokenizer, folder / "corpus")
            elif "beam" in system:
                from gpt_keras.data.beam import prepare_on_beam

                prepare_on_beam(str(folder / "text.jsonl"), tokenizer, f"{scratch}/beam", one_worker)
            else:
                prepare(str(folder / "text.jsonl"), tokenizer, Path(scratch) / "here", one_worker)
        elif system.startswith("sentencepiece"):
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
            start = time.perf_counter()
            with open(Path(scratch) / "ids", "wb") as stream:
                for text in texts(folder):
                    stream.write(np.array(processor.encode(text), np.uint16).tobytes())
        else:
            import datasets
            import tokenizers

            peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
            loaded = datasets.load_dataset(
                "json", data_files=str(folder / "text.jsonl"), split="train", cache_dir=scratch
            )
            start = time.perf_counter()
            loaded.map(
                lambda batch: {"ids": [encoding.ids for encoding in peer.encode_batch(batch["text"])]},
                batched=True,
                remove_columns=["text"],
                num_proc=os.cpu_count(),
            )
        return size / (time.perf_counter() - start)


def reading(system: str, folder: Path, batches: int = 2000) -> float:
    """Million tokens a second, after the first 50 batches."""
    next_batch = torch_batches(folder) if system.startswith("nanogpt") else our_batches(folder, "mask" in system)
    for _ in range(50):
        next_batch()
    start = time.perf_counter()
    for _ in range(batches):
        next_batch()
    return batches * BATCH * CONTEXT / (time.perf_counter() - start) / 1e6


def our_batches(folder: Path, mask: bool) -> Callable[[], object]:
    """The data set that training is given."""
    from gpt_keras.data.pretraining import Batches
    from gpt_keras.data.shards import Corpus

    corpus = Corpus(folder / "corpus")
    begin_id = corpus.tokenizer.begin_id if mask else None
    batches = iter(Batches(corpus.streams["train"], CONTEXT, BATCH, begin_id=begin_id).dataset())
    return lambda: next(batches)


def torch_batches(folder: Path) -> Callable[[], object]:
    """Random windows of one memory-mapped file, as nanoGPT draws them: each opened, cut out and widened anew."""
    import torch

    shard = max((folder / "corpus").glob("train-*.npy"), key=lambda path: path.stat().st_size)

    def draw() -> object:
        data = np.load(shard, mmap_mode="r")
        places = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
        tokens = [torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in places]
        targets = [torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in places]
        return torch.stack(tokens), torch.stack(targets)

    return draw


def opening(_: str, folder: Path) -> float:
    """Seconds to open a corpus of 1,000 shards."""
    from gpt_keras.data import shards
    from gpt_keras.data.preparation import prepare
    from gpt_keras.data.tokenizer import Tokenizer

    many = folder / "many"
    if not many.exists():
        few = folder / "few.jsonl"
        few.write_text("".join(json.dumps({"text": text}) + "\n" for text in itertools.islice(texts(folder), 100)))
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
        length = len(prepare(str(few), tokenizer, folder / "one").streams["train"])
        shards.SHARD_TOKENS = length // SHARDS
        prepare(str(few), tokenizer, many)
    start = time.perf_counter()
    corpus = shards.Corpus(many)
    seconds = time.perf_counter() - start
    assert len(corpus.manifest["splits"]["train"]["shards"]) >= SHARDS
    return seconds


def seeking(number: str, folder: Path) -> float:
    """Seconds from nothing to a batch."""
    from gpt_keras.data.pretraining import Batches
    from gpt_keras.data.shards import Corpus

    corpus = Corpus(folder / "corpus")
    start = time.perf_counter()
    Batches(corpus.streams["train"], CONTEXT, BATCH).batch(int(number))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
