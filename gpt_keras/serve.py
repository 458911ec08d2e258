"""Serve models over HTTP.

    python -m gpt_keras.serve saved_models
    curl -d '{"instances": ["Once upon a time"]}' localhost:8501/v1/models/default:predict
    python -m gpt_keras.serve --model chat=runs/chat/model

Every SavedModel in the folder, `saved_models/NAME/VERSION`, answers TF Serving's REST API; new versions are picked up
while it runs. Every `--model` answers OpenAI's API, many requests in one batch, and is talked to on the page at /.
/healthz, /readyz and /metrics are for whoever looks after it. Ctrl-C lets requests that run end first.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from gpt_keras import command
from gpt_keras.backend import choose_backend, start_backend
from gpt_keras.data.errors import InputError

KEY = "GPT_KERAS_API_KEY"


LOGGER = logging.getLogger("gpt_keras.serving")


@dataclass
class ServeOptions:
    """Options of `python -m gpt_keras.serve`.

    Args:
        saved_models: The folder of SavedModels, as NAME/VERSION.
        model: Model folders (or .gguf files, hf:ORG/NAME, smollm2) for OpenAI's API and the page, as NAME=MODEL_FOLDER.
        host: The address to listen on; 0.0.0.0 is every network that the machine is in.
        port: The port; 0 takes a free one.
        label: Names for versions, as MODEL:LABEL=VERSION.
        all_versions: Keep every version of a model, and not the newest and labelled ones alone.
        poll_seconds: Between two looks for new versions.
        skip_warm_up: Do not compile what a model needs before it answers (a SavedModel's own warm-up requests say what
            that is): it is there sooner, and the first requests wait.
        api_key: What clients have to send as "Authorization: Bearer KEY"; better put into the environment's
            GPT_KERAS_API_KEY, where no list of processes shows it.
        timeout: Seconds that a request may take.
        threads: Requests to SavedModels that are answered at a time.
        engine: What runs the models of --model on a CPU: keras; litert, which starts and runs faster, after making a
            file once; litert-int8, much faster, and less exact; or auto, which is litert where it is installed.
        slots: Texts that a model of --model writes at a time.
        queue: Requests that may wait for that; more are answered with 429.
        max_new_tokens: Most tokens of a text that a model of --model writes.
        max_body_mb: Most megabytes of a request.
        cors: Origins of web pages that may ask, https://example.org say.
        log_level: info says a line of JSON for every request, without what it asks.
    """

    POSITIONAL: ClassVar = ("saved_models",)
    TEXTS: ClassVar = ("api_key",)
    saved_models: Path = Path("saved_models")
    model: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = 8501
    label: list[str] = field(default_factory=list)
    all_versions: bool = False
    poll_seconds: float = 1.0
    skip_warm_up: bool = False
    api_key: str | None = None
    timeout: float = 120.0
    threads: int = 8
    engine: Literal["auto", "keras", "litert", "litert-int8"] = "auto"
    slots: int = 16
    queue: int = 64
    max_new_tokens: int = 4096
    max_body_mb: float = 16.0
    cors: list[str] = field(default_factory=list)
    log_level: Literal["info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        checks = {
            "--port must be 0 to 65535": 0 <= self.port < 65536,
            "--poll-seconds must be above 0": 0 < self.poll_seconds < float("inf"),
            "--timeout must be above 0": 0 < self.timeout < 1e6,
            "--threads must be at least 1": self.threads >= 1,
            "--slots must be at least 1": self.slots >= 1,
            "--max-new-tokens must be at least 1": self.max_new_tokens >= 1,
            "--queue must be at least 0": self.queue >= 0,
            "--max-body-mb must be above 0": 0 < self.max_body_mb < 1e6,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(f"{message}, not {getattr(self, message.split()[0][2:].replace('-', '_'))}")


def main(options: ServeOptions) -> None:
    if not options.saved_models.is_dir() and not options.model:
        raise InputError(
            f"{options.saved_models}: no such folder; export a model there first: python -m gpt_keras.export MODEL "
            f"--output {options.saved_models}/NAME, or serve a model folder: --model NAME=MODEL"
        )
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'gpt_keras[serve]'") from error
    from gpt_keras.serving.servables import SavedModels, parse_labels

    labels = parse_labels(options.label)
    folders = parse_models(options.model)
    for name in folders:
        if (options.saved_models / name).is_dir():
            raise InputError(f"--model {name}: {options.saved_models} has a model of this name, too; give it another")
    start_backend(choose_backend("tensorflow"))
    from gpt_keras.litert.engine import load_with
    from gpt_keras.serving.app import Limits, make_app
    from gpt_keras.serving.engine import Engine
    from gpt_keras.serving.metrics import Metrics
    from gpt_keras.serving.openai_api import ServedModel

    logging.basicConfig(level=options.log_level.upper(), format="%(message)s", stream=sys.stderr)
    metrics, text_models = Metrics(), {}
    for name, folder in folders.items():
        language_model = load_with(folder, options.engine, apart=True, say=LOGGER.info)
        language_model.text_tokenizer  # noqa: B018  which it must have
        generator = language_model.generator
        engine = Engine(generator, options.slots, options.queue, metrics.of_model(name))
        text_models[name] = ServedModel(name, language_model, engine)
    models = SavedModels(
        options.saved_models, labels, options.all_versions, options.poll_seconds, not options.skip_warm_up
    )
    limits = Limits(
        int(options.max_body_mb * 2**20),
        seconds=options.timeout,
        threads=options.threads,
        queue=options.queue,
        new_tokens=options.max_new_tokens,
    )
    key = (options.api_key or os.environ.get(KEY) or "").strip() or None
    app = make_app(models, text_models, metrics, limits, key, options.cors)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        http="h11",  # which bounds what may come before a body
        limit_concurrency=(1 + len(folders)) * (options.threads + options.slots + options.queue) + 1024,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(options.timeout) + 5,  # for a reader that does not read
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )
    with _listening(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        for text_model in text_models.values():
            text_model.engine.start(warm_up=not options.skip_warm_up)
        served = [str(options.saved_models)] * options.saved_models.is_dir() + list(text_models)
        print(f"serving {', '.join(served)} on http://{host}:{port}; Ctrl-C ends it", flush=True)
        uvicorn.Server(config).run([listening])


def parse_models(given: Sequence[str]) -> dict[str, str]:
    """Model folders by name, of NAME=MODEL_FOLDER.

    Raises:
        InputError: One is written otherwise, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise InputError(f"--model {text}: not of the form NAME=MODEL_FOLDER")
        if name in found:
            raise InputError(f"--model {text}: there are two models {name}")
        found[name] = folder
    return found


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: The address is not this machine's, or taken.
    """
    # Named as TCP, for asyncio sends at once (TCP_NODELAY) only on sockets that say so.
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(1024)
    except (OSError, UnicodeError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason})") from error
    return found


def cli() -> int:
    return command.run(main, ServeOptions, "python -m gpt_keras.serve")


if __name__ == "__main__":
    sys.exit(cli())
