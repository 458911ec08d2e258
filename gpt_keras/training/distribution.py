"""One training run on many devices, by `keras.distribution` on JAX and by MirroredStrategy on TensorFlow.

The mesh of devices has two axes. Along `batch` each device has rows of the batch of its own. Along `model` devices
share the rows, and each has some of the attention heads, of the feed-forward network's inner width, and of the
vocabulary (Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053). Under `model`, what is left of every
matrix is divided along `batch` as well, and so are gradients and the optimizer's state: they are brought together
where they are used (Zhao et al. 2023, FSDP, https://arxiv.org/abs/2304.11277; Xu et al. 2021, GSPMD,
https://arxiv.org/abs/2105.04663).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.model import GPT
from gpt_keras.parts import zero_weights
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.processes import processes

Tensor = Any
Axes = tuple[str | None, ...]

_MATRICES: dict[str, Axes] = {
    r"embedding/token_embedding": ("model", "batch"),
    r"output_head/output_embedding": ("model", "batch"),
    r"embedding/position_embedding": (None, "batch"),
    r".*/attention/(query|key|value)/kernel": ("batch", "model"),
    r".*/attention/(query|key|value)/bias": ("model",),
    r".*/attention/output/kernel": ("model", "batch"),
    r".*/feed_forward/(gate|up)/kernel": ("batch", "model"),
    r".*/feed_forward/(gate|up)/bias": ("model",),
    r".*/feed_forward/down/kernel": ("model", "batch"),
}
"""Along which axis of the mesh each dimension of a weight is divided; the rest is on every device."""


@dataclass(frozen=True)
class Devices:
    """What a run is distributed over.

    Attributes:
        count: How many devices.
        words: How, for the user.
        undivided: What stays whole on every device, though the mesh would divide it, in words.
        strategy: TensorFlow's, whose scope the model is built in.
    """

    count: int = 1
    words: str = ""
    undivided: tuple[str, ...] = ()
    strategy: Any = None

    def building(self) -> contextlib.AbstractContextManager[Any]:
        """Build and compile the model inside."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()


def distribute(options: TrainOptions, config: GPTConfig, state_bytes: int) -> Devices:
    """Choose the devices, and set Keras's distribution for what is built from now on.

    Args:
        options: `distribution` and `mesh` of them.
        config: Of the model.
        state_bytes: What weights, gradients and optimizer take; `auto` divides them where one device has no room.

    Raises:
        InputError: The mesh does not fit the devices, the batch or the model.
    """
    tensorflow = keras.backend.backend() == "tensorflow"
    names = _tensorflow_devices() if tensorflow else keras.distribution.list_devices()
    mesh = _mesh(options, state_bytes, len(names))
    if mesh is None:
        left = len(names) > 1 and options.distribution is None
        return Devices(words=f"1 of {len(names)}: --distribution auto takes all" if left else "")
    kind, (rows, columns) = mesh
    if (options.batch_size // options.accumulate) % rows:
        what = f"--batch-size {options.batch_size}" + (f" in {options.accumulate} parts" * (options.accumulate > 1))
        fits = rows * options.accumulate
        raise InputError(f"{what} cannot be divided among {rows} devices: give a multiple of {fits}")
    devices = np.array(names[: rows * columns])
    words = f"{len(devices)}" + (f" in {processes().count} processes" if processes().count > 1 else "")
    if tensorflow:
        import tensorflow as tf

        return Devices(len(devices), f"{words}, data parallel", strategy=tf.distribute.MirroredStrategy(names[:rows]))
    if kind == "data":
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices.tolist(), auto_shard_dataset=False)
        )
        return Devices(len(devices), f"{words}, data parallel")
    device_mesh = keras.distribution.DeviceMesh((rows, columns), ["batch", "model"], devices.reshape(rows, columns))
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts(config, device_mesh), batch_dim_name="batch", auto_shard_dataset=False
        )
    )
    words += f", mesh {rows} x {columns}, weights and optimizer divided"
    return Devices(len(devices), words, tuple(_undivided(config, columns)))


def _tensorflow_devices() -> list[str]:
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


def _mesh(options: TrainOptions, state_bytes: int, count: int) -> tuple[str, tuple[int, int]] | None:
    """data or model, and the mesh's shape; `None` for one device."""
    kind = options.distribution or ("auto" if processes().count > 1 else None)
    if kind is None:
        return None
    rows, columns = options.mesh_shape or (count, 1)
    if rows * columns > count or (processes().count > 1 and rows * columns < count):
        raise InputError(f"--mesh {options.mesh} asks for {rows * columns} devices: there are {count}")
    if keras.backend.backend() == "tensorflow":
        _refuse_on_tensorflow(options, columns, rows * columns > 1)
        kind = "data"
    if kind == "auto":
        kind = "model" if columns > 1 or state_bytes > 0.6 * _device_memory() else "data"
    if kind == "data" and columns > 1:
        raise InputError(f"--mesh {options.mesh} divides the model: that is --distribution model")
    return (kind, (rows, columns)) if rows * columns > 1 else None


def _refuse_on_tensorflow(options: TrainOptions, columns: int, several: bool) -> None:
    """What only JAX does with several devices."""
    asked = {
        "--distribution model": options.distribution == "model" or columns > 1,
        f"--accumulate {options.accumulate}": several and options.accumulate > 1,
        f"--ema {options.ema}": several and options.ema > 0,
        f"--sample-steps {options.sample_steps}": several and options.sample_steps > 0,
    }
    for flag, given in asked.items():
        if given:
            raise InputError(f"{flag} over several devices needs JAX: --backend jax")


def _device_memory() -> float:
    """Bytes of one device; infinite where it does not say."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return float(statistics.get("bytes_limit", float("inf")))


def layouts(config: GPTConfig, mesh: keras.distribution.DeviceMesh) -> keras.distribution.LayoutMap:
    """How the weights of a model, and what passes between its blocks, lie on a mesh with the axes `batch` and `model`.

    A dimension that an axis does not divide evenly stays whole; along `model`, attention heads are what is divided.
    """
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    found = keras.distribution.LayoutMap(mesh)
    for path, shape in config.weight_shapes():
        axes = next((axes for pattern, axes in _MATRICES.items() if re.fullmatch(pattern, path)), (None,) * len(shape))
        counts = list(shape)
        if re.search("/attention/(query|output)/", path):
            counts = [config.num_heads if axis == "model" else n for axis, n in zip(axes, shape, strict=True)]
        elif re.search("/attention/(key|value)/", path):
            counts = [config.num_key_value_heads if axis == "model" else n for axis, n in zip(axes, shape, strict=True)]
        kept = (axis if axis and n % sizes[axis] == 0 else None for axis, n in zip(axes, counts, strict=True))
        found["(gpt/)?" + path] = tuple(kept)
    found["(.*/)?(embedding|block_[0-9]+|final_norm)/output"] = ("batch", None, None)
    return found


def _undivided(config: GPTConfig, columns: int) -> list[str]:
    """What does not divide by the mesh's `model` axis, in words."""
    counts = {
        "attention heads": config.num_heads,
        "key and value heads": config.num_key_value_heads,
        "of inner width": config.intermediate_dim,
        "tokens of vocabulary": config.vocabulary_size,
    }
    return [f"{count} {name}" for name, count in counts.items() if count % columns]


def hosts() -> tuple[int, int]:
    """This host's number and the number of hosts that batches are divided among."""
    found = keras.distribution.distribution()
    if found is None:
        return 0, 1
    return found.data_shard_id, min(processes().count, found.num_model_replicas)


def spread_rows(batch: Any) -> Any:
    """A whole batch, which every process has, laid out over the devices as training batches are."""
    found = keras.distribution.distribution()
    if found is None or keras.backend.backend() != "jax":
        return batch
    import jax

    def place(rows: np.ndarray) -> Tensor:
        layout = found.get_data_layout(rows.shape).backend_layout
        return jax.make_array_from_callback(rows.shape, layout, lambda index: rows[index])

    return keras.tree.map_structure(place, batch)


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Inside, what is built is on this process's first device."""
    found = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(found)


def local_copy(model: GPT, into: GPT | None = None) -> GPT:
    """The same model on one device of each process, which all of them ask for at once; itself where it is on one.

    Args:
        model: Built under a distribution.
        into: An earlier copy, to be filled again.
    """
    if keras.distribution.distribution() is None:
        return model
    from jax.experimental import multihost_utils

    with one_device():
        if into is None:
            with zero_weights():
                into = GPT(model.config, dtype=model.embedding.dtype_policy)
        for source, target in zip(model.weights, into.weights, strict=True):
            everywhere = source.value.is_fully_addressable or source.value.is_fully_replicated
            value = source.value if everywhere else multihost_utils.process_allgather(source.value, tiled=True)
            target.assign(np.asarray(value))
    return into
