"""What /metrics shows, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Of the server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("method", "endpoint", "status")
        self.requests = Counter("gpt_keras_requests", "Requests answered.", names, registry=self.registry)
        self.seconds = Histogram(
            "gpt_keras_request_seconds",
            "From a request's first byte to its answer.",
            ("endpoint",),
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.waiting = Gauge("gpt_keras_requests_waiting", "Requests waiting for a thread.", registry=self.registry)
        self.running = Gauge("gpt_keras_requests_running", "Requests being answered.", registry=self.registry)
        model: dict[str, Any] = {"labelnames": ("model",), "registry": self.registry}
        self._of_model: dict[str, Any] = {
            "waiting": Gauge("gpt_keras_engine_waiting", "Texts waiting for a slot.", **model),
            "running": Gauge("gpt_keras_engine_running", "Texts being written.", **model),
            "slots": Gauge("gpt_keras_engine_slots", "Texts that can be written at a time.", **model),
            "prompt_tokens": Counter("gpt_keras_prompt_tokens", "Tokens read.", **model),
            "new_tokens": Counter("gpt_keras_new_tokens", "Tokens written.", **model),
            "first_token": Histogram(
                "gpt_keras_first_token_seconds", "From a request to its first token.", buckets=_BUCKETS, **model
            ),
            "next_token": Histogram(
                "gpt_keras_next_token_seconds", "From a token to the next.", buckets=_BUCKETS, **model
            ),
        }

    def of_model(self, name: str) -> EngineMetrics:
        """Those of one model's engine."""
        return EngineMetrics(**{figure: collector.labels(name) for figure, collector in self._of_model.items()})


@dataclass(frozen=True)
class EngineMetrics:
    """Figures of one model's engine; `Metrics` says what they are."""

    waiting: Gauge
    running: Gauge
    slots: Gauge
    prompt_tokens: Counter
    new_tokens: Counter
    first_token: Histogram
    next_token: Histogram
