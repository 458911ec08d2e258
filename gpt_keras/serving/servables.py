"""The SavedModels in a folder, as TF Serving keeps them: the newest version of each, and those that labels name.

    BASE/MODEL/VERSION/saved_model.pb

A thread looks for changes. A new version is loaded beside the old one, which goes once the new one answers; one that
cannot be loaded is remembered as failed, and the old one stays. A version that is removed from the disk is unloaded.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gpt_keras.data.errors import InputError
from gpt_keras.serving.errors import HTTP_STATUS, RequestError
from gpt_keras.serving.request_json import TensorSpec

LOGGER = logging.getLogger("gpt_keras.serving")
DEFAULT_SIGNATURE = "serving_default"
_OPERATIONS = ("sentencepiece_tokenizer", "regex_split_ops", "normalize_ops")


class Servable:
    """One version of a SavedModel, loaded.

    A session of TensorFlow 1's kind, as TF Serving has: it runs any SavedModel, by the names in its signatures.

    Args:
        folder: The version's.

    Raises:
        RequestError: It cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph)
        try:
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
        except Exception as error:  # a damaged file can fail in any way
            self._session.close()
            raise RequestError(_without_places(str(error), folder), "INTERNAL") from error
        self.signatures = dict(meta_graph.signature_def)
        self._functions: dict[Any, Any] = {}
        self._running, self._closing, self._changed = 0, False, threading.Condition()

    def signature(self, name: str) -> Any:
        """The signature's `SignatureDef`; `None` if there is none."""
        return self.signatures.get(name or DEFAULT_SIGNATURE)

    def specs(self, name: str) -> dict[str, TensorSpec]:
        """What the inputs of a signature are.

        Raises:
            RequestError: There is no such signature.
        """
        found = self.signature(name)
        if found is None:
            raise RequestError(f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in signature def')
        return {key: TensorSpec(_dtype_name(info.dtype), key in found.defaults) for key, info in found.inputs.items()}

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a signature, by name.

        Args:
            name: The signature's.
            inputs: Those without defaults, at least.

        Raises:
            RequestError: TensorFlow refuses the inputs or fails on them, or the version is unloaded (UNAVAILABLE).
        """
        with self._changed:
            if self._closing:
                raise RequestError("the version has just been unloaded", "UNAVAILABLE")
            self._running += 1
        try:
            return self._run(name, inputs)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        signature = self.signature(name)
        values = {key: tf.make_ndarray(value) for key, value in signature.defaults.items()} | dict(inputs)
        feeds, fetches = sorted(values), sorted(signature.outputs)
        try:
            found = self._function(signature, feeds, fetches)(*(values[key] for key in feeds))
        except tf.errors.OpError as error:
            code = error.__class__.__name__.removesuffix("Error")
            code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()
            raise RequestError(_short(error.message), code if code in HTTP_STATUS else "INTERNAL") from error
        except (ValueError, TypeError) as error:  # a shape that the signature excludes
            raise RequestError(_short(str(error))) from error
        return {key: _array(value) for key, value in zip(fetches, found, strict=True)}

    def _function(self, signature: Any, feeds: list[str], fetches: list[str]) -> Any:
        """From inputs to outputs. `Session.run` would refuse shapes other than the signature's, which TF Serving lets
        the graph decide on."""
        from tensorflow.core.protobuf import config_pb2

        key = (id(signature), tuple(feeds))
        if key not in self._functions:
            options = config_pb2.CallableOptions()
            options.feed.extend(signature.inputs[name].name for name in feeds)
            options.fetch.extend(signature.outputs[name].name for name in fetches)
            self._functions[key] = self._session._make_callable_from_options(options)
        return self._functions[key]

    def warm_up(self, folder: Path) -> None:
        """Run the requests that the version brings for that (`assets.extra/tf_serving_warmup_requests`), two at a time:
        the first request to a signature takes much longer than all others.

        Raises:
            RequestError: One of them fails.
        """
        path = folder / "assets.extra" / "tf_serving_warmup_requests"
        if not path.is_file():
            return
        import tensorflow as tf
        from tensorflow_serving.apis import prediction_log_pb2

        def run(record: bytes) -> None:
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if log.WhichOneof("log_type") != "predict_log":
                return  # to classify or regress: answered without having been warmed up
            request = log.predict_log.request
            name = request.model_spec.signature_name
            if self.signature(name) is not None:
                self.run(name, {key: tf.make_ndarray(value) for key, value in request.inputs.items()})

        try:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(run, tf.data.TFRecordDataset(str(path)).as_numpy_iterator()))
        except (tf.errors.OpError, ValueError, DecodeError) as error:
            raise RequestError(
                f"the requests to warm up with are damaged: {_short(str(error))}", "DATA_LOSS"
            ) from error

    def close(self) -> None:
        """Let go of its memory, once the requests that run have ended."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._running == 0)
        self._functions.clear()
        self._session.close()


@dataclass
class Version:
    """What is known of a version.

    Attributes:
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        code: OK, or what loading failed of.
        message: What it failed of.
        folder: Where it is.
        stamp: Of the folder when loading was tried.
        servable: While it is available.
    """

    state: str = "START"
    code: str = "OK"
    message: str = ""
    folder: Path | None = None
    stamp: Any = None
    servable: Servable | None = None


@dataclass
class Model:
    """A model's versions, by number."""

    versions: dict[int, Version] = field(default_factory=dict)


class SavedModels:
    """The models in a folder.

    Args:
        base: The folder, which may come later.
        labels: For each model its labels, as label to version.
        all_versions: Whether every version is kept, and not the newest alone.
        poll_seconds: Between two looks at the folder.
        warm_up: Whether a version runs its own warm-up requests before it counts as available.

    Attributes:
        looked: Whether it has been looked at; `start` or `refresh` does.
    """

    def __init__(
        self,
        base: str | Path,
        labels: Mapping[str, Mapping[str, int]] | None = None,
        all_versions: bool = False,
        poll_seconds: float = 1.0,
        warm_up: bool = True,
    ) -> None:
        from gpt_keras.data.graph_tokenizer import load_operations

        for library in _OPERATIONS:
            load_operations(library)
        self.base, self._all_versions, self._warm_up = Path(base), all_versions, warm_up
        self._models: dict[str, Model] = {}
        self._labels = {model: dict(named) for model, named in (labels or {}).items()}
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        self._ended, self.looked = threading.Event(), False
        self._thread = threading.Thread(target=self._poll, args=(poll_seconds,), daemon=True)

    def start(self) -> None:
        """Look at the folder from now on, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and unload everything; requests that run end first."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for name, model in self._models.items():
            for number in list(model.versions):
                self._unload(name, number)

    def get(self, name: str, version: int | None = None, label: str | None = None) -> tuple[int, Servable]:
        """A version that is available, by default the newest, with its number.

        Raises:
            RequestError: There is none.
        """
        with self._lock:
            if label is not None:
                version = self._labels.get(name, {}).get(label)
                if version is None:
                    raise RequestError(f"Unrecognized servable version label: {label}")
            versions = self._models[name].versions if name in self._models else {}
            ready = {number: found for number, found in versions.items() if found.servable is not None}
            number = max(ready, default=None) if version is None else version
            if number is None or number not in ready:
                which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise RequestError(f"Servable not found for request: {which}", "NOT_FOUND")
            servable = ready[number].servable
            assert servable is not None
            return number, servable

    def states(self, name: str, version: int | None = None) -> list[tuple[int, Version]]:
        """What is known of a model's versions, the newest first.

        Raises:
            RequestError: Nothing.
        """
        with self._lock:
            versions = dict(self._models[name].versions) if name in self._models else {}
        if version is not None:
            if version not in versions:
                raise RequestError(f"Could not find version {version} of model {name}", "NOT_FOUND")
            return [(version, versions[version])]
        if not versions:
            raise RequestError(f"Could not find any versions of model {name}", "NOT_FOUND")
        return sorted(versions.items(), reverse=True)

    def names(self) -> list[str]:
        """The models that have an available version."""
        with self._lock:
            found = self._models.items()
            return sorted(name for name, model in found if any(v.servable for v in model.versions.values()))

    def refresh(self) -> None:
        """Look at the folder now: load what is new, unload what is gone."""
        with self._refreshing:
            there = self._on_disk()
            for name in sorted({*there, *self._models}):
                self._refresh_model(name, there.get(name, {}))
            self.looked = True

    def _poll(self, seconds: float) -> None:
        while True:
            try:
                self.refresh()
            except Exception:  # of a disk that fails, say; the next look may do better
                LOGGER.exception("looking for models in %s failed", self.base)
            if self._ended.wait(seconds):
                return

    def _on_disk(self) -> dict[str, dict[int, tuple[Path, Any]]]:
        """For each model the versions that are to be loaded: the folder, and a stamp that changes when its files do."""
        found: dict[str, dict[int, tuple[Path, Any]]] = {}
        for folder in _folders(self.base):
            versions = {int(path.name): path for path in _folders(folder) if re.fullmatch(r"[0-9]{1,18}", path.name)}
            wanted = set(versions) if self._all_versions else {max(versions, default=-1)}
            wanted |= set(self._labels.get(folder.name, {}).values())
            found[folder.name] = {
                number: (versions[number], _stamp(versions[number])) for number in wanted & set(versions)
            }
        return found

    def _refresh_model(self, name: str, there: dict[int, tuple[Path, Any]]) -> None:
        with self._lock:
            versions = self._models.setdefault(name, Model()).versions if there or name in self._models else {}
        loaded = [number for number, version in versions.items() if version.servable is not None]
        for number in sorted(there, reverse=True):
            known, (folder, stamp) = versions.get(number), there[number]
            if known is None or (known.servable is None and known.stamp != stamp):
                self._load(name, number, folder, stamp)
        newest = versions.get(max(there, default=-1))
        for number in loaded:
            # An old version stays for as long as the newest does not answer, unless its files are gone.
            gone = not (versions[number].folder or self.base).is_dir()
            if number not in there and (gone or (newest is not None and newest.servable is not None)):
                self._unload(name, number)

    def _load(self, name: str, number: int, folder: Path, stamp: Any) -> None:
        version, servable = Version("LOADING", folder=folder, stamp=stamp), None
        with self._lock:
            self._models[name].versions[number] = version
        try:
            servable = Servable(folder)
            if self._warm_up:
                servable.warm_up(folder)
        except Exception as error:
            if not isinstance(error, RequestError):
                LOGGER.exception("loading %s failed", folder)
                error = RequestError(_without_places(str(error), folder), "INTERNAL")
            if servable is not None:
                servable.close()
            with self._lock:
                version.state, version.code, version.message = "END", error.code, error.message
            return
        with self._lock:
            version.state, version.servable = "AVAILABLE", servable

    def _unload(self, name: str, number: int) -> None:
        with self._lock:
            version = self._models[name].versions[number]
            servable, version.servable, version.stamp = version.servable, None, None  # it may be wanted again
            version.state = "END" if servable is None else "UNLOADING"
        if servable is None:
            return

        def close() -> None:
            servable.close()
            version.state = "END"

        threading.Thread(target=close, daemon=True).start()  # others need not wait for the requests that run


def parse_labels(given: Iterable[str]) -> dict[str, dict[str, int]]:
    """MODEL:LABEL=VERSION, each.

    Raises:
        InputError: One has another form.
    """
    found: dict[str, dict[str, int]] = {}
    for text in given:
        matched = re.fullmatch(r"([^:=/]+):([^:=/]+)=([0-9]{1,18})", text)
        if matched is None:
            raise InputError(f"--label {text}: expected MODEL:LABEL=VERSION, half_plus_two:stable=123 say")
        found.setdefault(matched[1], {})[matched[2]] = int(matched[3])
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _stamp(folder: Path) -> Any:
    """Changes when the files do."""
    found = []
    try:
        for path in sorted(folder.rglob("*")):
            state = path.stat()
            found.append((str(path), state.st_size, state.st_mtime_ns))
    except OSError:  # removed while it is looked at
        found.append((str(folder), -1, 0))
    return tuple(found)


def _dtype_name(number: int) -> str:
    """TensorFlow's own name for a type: float, and not float32."""
    from tensorflow.core.framework import types_pb2

    return types_pb2.DataType.Name(number).removeprefix("DT_").lower()


def _array(value: Any) -> np.ndarray:
    """A result as an array, of bytes where it is strings."""
    found = np.asarray(value)
    if found.dtype.kind in "SU":  # of a scalar
        found = np.array(value, object)
    return found


def _short(message: str) -> str:
    """TensorFlow's message without where in whose program the operation was made."""
    message = message.split("\n\nOriginal stack trace")[0].split("\n\nErrors may have originated")[0]
    message = re.split(r"\n?Detected at node|\n\s*File \"", message)[0]
    return message.strip() or "the graph failed"


def _without_places(message: str, folder: Path) -> str:
    """A message without the place of the folder on this machine."""
    for path in (folder, folder.absolute()):
        message = message.replace(str(path), f"{folder.parent.name}/{folder.name}")
    return _short(message.replace(f"{folder.parent.parent.absolute()}/", ""))
