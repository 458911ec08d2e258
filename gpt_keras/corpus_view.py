"""How `python -m gpt_keras.corpus` shows a corpus, or conversations: tables, lengths, and batches as text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_keras.data.shards import SPLITS
from gpt_keras.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt_keras.data.finetuning import Examples, PackedBatches

BAR = 40
COLORS = ("cyan", "yellow", "green", "magenta")
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show_corpus(manifest: dict[str, Any], folder: str, console: Console) -> None:
    """What corpus.json says: counts, what cleaning did, and how long documents are."""
    sources = [
        entry["source"] + ("" if entry["weight"] is None else f"={entry['weight']:g}") for entry in manifest["sources"]
    ]
    table = Table(title=f"{folder}, from {', '.join(sources)}", title_justify="left")
    for column in ("split", "documents", "tokens", "bytes", "bytes per token", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        entry = manifest["splits"][split]
        counts = (entry["documents"], entry["tokens"], entry["bytes"])
        density = entry["bytes"] / max(1, entry["tokens"])
        table.add_row(split, *(f"{count:,}" for count in counts), f"{density:.2f}", str(len(entry["shards"])))
    console.print(table)
    cleaning = manifest["cleaning"]
    for step, count in cleaning["changed"].items():
        console.print(f"{step}: changed {count:,} documents", highlight=False)
    for reason, dropped in cleaning["dropped"].items():
        console.print(
            f"{reason}: dropped {dropped['documents']:,} documents, {dropped['bytes']:,} bytes", highlight=False
        )
        for example in cleaning["examples"].get(reason, []):
            like = f", like {example['like']}" if "like" in example else ""
            words = f"  {example['name']}{like}: {example['text'][:60]!r}"
            console.print(words, highlight=False, markup=False, soft_wrap=True)


def show_lengths(lengths: Sequence[int], what: str, console: Console) -> None:
    """Draw how many of `what` have 2^i tokens or more but fewer than 2^(i + 1), for each i."""
    table = Table(title=f"tokens of a {what}", title_justify="left", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    filled = [i for i, count in enumerate(lengths) if count]
    for i in range(min(filled), max(filled) + 1):
        eighths = math.ceil(8 * BAR * lengths[i] / max(lengths))
        bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
        table.add_row(f"{1 << i:,} to {(2 << i) - 1:,}", bar, f"{lengths[i]:,}")
    console.print(table)


def show_examples(name: str, examples: Examples, batches: PackedBatches, console: Console) -> None:
    """What there is to learn from conversations, and how they are packed."""
    lengths = examples.ends - examples.starts
    console.print(
        f"{name}: {len(examples):,} examples, {len(examples.tokens):,} tokens, "
        f"{examples.trained.mean():.1%} of them learned; {examples.cut:,} cut"
        + "".join(f", {count:,} dropped as {reason}" for reason, count in examples.dropped.items()),
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"packed into {len(batches.rows):,} rows of {batches.context_length:,} tokens, "
        f"{len(examples) / len(batches.rows):.1f} examples a row, {batches.padding_share:.2%} padding",
        highlight=False,
    )
    show_lengths(np.bincount(np.log2(lengths).astype(int)).tolist(), "conversation", console)


def show_batch(
    number: int,
    batch: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray],
    tokenizer: Tokenizer,
    console: Console,
    when: str = "",
) -> None:
    """A batch as text: a ▌ before each document, which has a color of its own; ‹› around what is read, not learned.

    `when` says what this is so with.
    """
    inputs, targets, weights = batch
    rows, length = targets.shape
    console.print(
        f"batch {number:,}: {rows} rows of {length:,} tokens; ▌ begins a document, which sees no other; "
        f"‹› is read, the rest is learned{when}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    for row in range(rows):
        segments = inputs["segment_ids"][row]
        text = row_text(inputs["token_ids"][row], segments, targets[row], weights[row], tokenizer)
        documents, learned = len(np.unique(segments[weights[row] > 0])), int(weights[row].sum())
        words = f"row {row}: {documents} document{'s' * (documents != 1)}, {learned:,} tokens learned"
        console.print(words, style="bold", highlight=False)
        console.print(text, soft_wrap=True)


def row_text(
    token_ids: np.ndarray, segment_ids: np.ndarray, targets: np.ndarray, weights: np.ndarray, tokenizer: Tokenizer
) -> Text:
    """One row. Tokens of no text, such as `</s>`, are shown by name; padding is left out.

    A document is its tokens and, where that is learned, the target of the last one.
    """
    names = {token: name for name, token in tokenizer.special.items()}
    text = Text()
    bounds = [0, *(np.flatnonzero(np.diff(segment_ids)) + 1).tolist(), len(segment_ids)]
    for place, (start, end) in enumerate(itertools.pairwise(bounds)):
        tokens, learned = token_ids[start:end].tolist(), [False, *(weights[start : end - 1] > 0).tolist()]
        if weights[end - 1] > 0:
            tokens.append(int(targets[end - 1]))
            learned.append(True)
        if not any(learned) and set(tokens) == {tokenizer.padding_id}:
            continue
        color = COLORS[place % len(COLORS)]
        text.append("▌", f"bold {color}")
        for is_learned, run in _runs(tokens, learned):
            shown = b"".join(names[t].encode() if t in names else tokenizer.token_bytes(t) for t in run)
            words = shown.decode("utf-8", "replace")
            text.append(words if is_learned else f"‹{words}›", color if is_learned else f"dim {color}")
    return text


def _runs(tokens: list[int], learned: list[bool]) -> list[tuple[bool, list[int]]]:
    runs: list[tuple[bool, list[int]]] = []
    for token, is_learned in zip(tokens, learned, strict=True):
        if not runs or runs[-1][0] != is_learned:
            runs.append((is_learned, []))
        runs[-1][1].append(token)
    return runs
