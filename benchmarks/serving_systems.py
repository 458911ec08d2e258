"""The servers that `benchmarks.serving` measures, and the static batching around transformers that is one of them."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_keras import machine

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "llama_cpp": "llama-cpp-python[server]",
    "starlette_context": "llama-cpp-python[server]",
    "fastapi": "fastapi",
    "ai_edge_litert": "gpt_keras[litert]",
    "prometheus_client": "gpt_keras[serve]",
}
OURS = ("fastapi", "prometheus_client")
TENSORFLOW = {"KERAS_BACKEND": "tensorflow"}
MOST_TOGETHER = 16
GATHERING_SECONDS = 0.02


@dataclass(frozen=True)
class Server:
    """One way to serve a model over HTTP.

    Attributes:
        command: From a model folder, a .gguf file of the same model (or `None`) and a port to a command line.
        needs: Keys of `PACKAGES`.
        ready: The path that answers 200 once it works.
        environment: Variables of its process.
    """

    command: Callable[[Path, Path | None, int], list[str]]
    needs: tuple[str, ...]
    ready: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return missing(self.needs)


def missing(modules: Iterable[str]) -> list[str]:
    """Packages to install for the modules that are not here."""
    return sorted({PACKAGES[name] for name in modules if importlib.util.find_spec(name) is None})


def ours(engine: str) -> Callable[[Path, Path | None, int], list[str]]:
    def command(folder: Path, gguf: Path | None, port: int) -> list[str]:
        options = ["--port", str(port), "--model", f"model={folder}", "--log-level", "warning", "--engine", engine]
        return [sys.executable, "-m", "gpt_keras.serve", str(folder / "none"), *options]

    return command


def transformers(dtype: str) -> Callable[[Path, Path | None, int], list[str]]:
    def command(folder: Path, gguf: Path | None, port: int) -> list[str]:
        return [sys.executable, "-m", "benchmarks.serving_systems", str(folder), str(port), dtype]

    return command


def llama_cpp(folder: Path, gguf: Path | None, port: int) -> list[str]:
    assert gguf is not None
    options = ["--n_ctx", "2048", "--n_threads", str(machine.cores()), "--model_alias", "model", "--port", str(port)]
    return [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), *options]


SERVERS = {
    "gpt_keras int8": Server(
        ours("litert-int8"), ("fastapi", "prometheus_client", "ai_edge_litert"), "/readyz", TENSORFLOW
    ),
    "gpt_keras float32": Server(
        ours("litert"), ("fastapi", "prometheus_client", "ai_edge_litert"), "/readyz", TENSORFLOW
    ),
    "gpt_keras float32, Keras": Server(ours("keras"), OURS, "/readyz", TENSORFLOW),
    "transformers float32, static batches": Server(
        transformers("float32"), ("fastapi", "torch", "transformers"), "/ready"
    ),
    "transformers bfloat16, static batches": Server(
        transformers("bfloat16"), ("fastapi", "torch", "transformers"), "/ready"
    ),
    "llama-cpp-python's server, Q4_1": Server(llama_cpp, ("llama_cpp", "starlette_context"), "/v1/models"),
}


def serve_transformers(folder: str, port: int, dtype: str) -> None:
    """A model of transformers behind FastAPI: what has come when the last batch is done is the next batch."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    queue: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[Any]]] = asyncio.Queue()
    app = FastAPI()

    def generate(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        inputs = tokenizer([one["prompt"] for one in asked], return_tensors="pt", padding=True)
        most = max(one["max_tokens"] for one in asked)
        with torch.inference_mode():
            found = model.generate(**inputs, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answers = []
        for one, row in zip(asked, found[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ids = row[: one["max_tokens"]]
            ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            usage = {"completion_tokens": len(ids)}
            answers.append({"choices": [{"text": tokenizer.decode(ids)}], "usage": usage})
        return answers

    async def work() -> None:
        while True:
            batch = [await queue.get()]
            await asyncio.sleep(GATHERING_SECONDS)
            while len(batch) < MOST_TOGETHER and not queue.empty():
                batch.append(queue.get_nowait())
            for (_, future), answer in zip(
                batch, await asyncio.to_thread(generate, [one for one, _ in batch]), strict=True
            ):
                future.set_result(answer)

    @app.get("/ready")
    async def ready() -> str:
        return "ok"

    @app.post("/v1/completions")
    async def complete(asked: dict[str, Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await queue.put((asked, future))
        return await future

    async def main() -> None:
        worker = asyncio.create_task(work())
        await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning")).serve()
        worker.cancel()

    asyncio.run(main())


if __name__ == "__main__":
    serve_transformers(sys.argv[1], int(sys.argv[2]), sys.argv[3])
