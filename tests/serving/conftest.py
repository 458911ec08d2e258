"""Small SavedModels with signatures of every kind, written once."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from ..conftest import PATIENCE, build

WRITE = '''
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

def spec(dtype, name, shape=(None,)):
    return tf.TensorSpec(shape, dtype, name)

class Numbers(tf.Module):
    """x -> factor * x + 1, and other things to do with numbers."""

    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(factor)

        @tf.function(input_signature=[spec(tf.float32, "x")])
        def line(x):
            return {"y": self.factor * x + 1.0}

        @tf.function(input_signature=[spec(tf.float32, "x"), spec(tf.int32, "n"), spec(tf.bool, "flag")])
        def several(x, n=tf.constant([10]), flag=tf.constant([False])):
            return {"sum": x + tf.cast(n, tf.float32), "double": 2 * n, "flag": tf.logical_not(flag)}

        @tf.function(input_signature=[spec(tf.float32, "x")])
        def total(x):
            return {"total": tf.reduce_sum(x)}

        all_kinds = [spec(tf.float64, "d"), spec(tf.int64, "l"), spec(tf.uint8, "u"), spec(tf.float16, "h")]

        @tf.function(input_signature=all_kinds)
        def kinds(d, l, u, h=tf.constant([0.5], tf.float16)):
            return {"d": d, "l": l, "u": u, "h": h}

        @tf.function(input_signature=[spec(tf.float32, "x")])
        def checked(x):
            with tf.control_dependencies([tf.debugging.assert_positive(x, "x must be positive")]):
                return {"y": tf.sqrt(x)}

        @tf.function(input_signature=[spec(tf.float32, "x")])
        def slow(x):
            last = 1e6 * tf.cast(x[0], tf.float64)
            (rounds,) = tf.while_loop(lambda i: i < last, lambda i: (i + 1.0,), (tf.constant(0.0, tf.float64),))
            return {"y": tf.cast(rounds, tf.float32) + 0.0 * x}

        self.functions = {"serving_default": line, "several": several, "total": total, "kinds": kinds,
                          "checked": checked, "slow": slow}

class Texts(tf.Module):
    def __init__(self):
        super().__init__()

        @tf.function(input_signature=[spec(tf.string, "text")])
        def upper(text):
            return {"out": tf.strings.upper(text)}

        @tf.function(input_signature=[spec(tf.string, "text")])
        def both(text):
            return {"out": tf.strings.upper(text), "raw_bytes": tf.identity(text)}

        self.functions = {"serving_default": upper, "both": both}

def classifier(folder):
    """Signatures to classify and to regress, which read serialized examples."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        examples = tf.compat.v1.placeholder(tf.string, [None], "examples")
        features = {"x": tf.io.FixedLenFeature([], tf.float32), "bias": tf.io.FixedLenFeature([], tf.float32, 0.0)}
        parsed = tf.io.parse_example(examples, features)
        score = tf.sigmoid(parsed["x"] + parsed["bias"])
        scores = tf.stack([score, 1.0 - score], axis=1)
        classes = tf.tile([["up", "down"]], [tf.shape(score)[0], 1])
        info = tf.compat.v1.saved_model.build_tensor_info
        signature = tf.compat.v1.saved_model.build_signature_def
        classify = signature({"inputs": info(examples)}, {"classes": info(classes), "scores": info(scores)},
                             "tensorflow/serving/classify")
        regress = signature({"inputs": info(examples)}, {"outputs": info(score)}, "tensorflow/serving/regress")
        builder = tf.compat.v1.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": classify, "regress": regress})
        builder.save()

base = sys.argv[1]
for version, factor in ((1, 1.0), (2, 2.0), (3, 3.0)):
    numbers = Numbers(factor)
    tf.saved_model.save(numbers, f"{base}/numbers/{version}", signatures=numbers.functions)
texts = Texts()
tf.saved_model.save(texts, f"{base}/texts/7", signatures=texts.functions)
classifier(f"{base}/classifier/1")
'''


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """numbers/1, 2 and 3 (x -> version * x + 1), texts/7 and classifier/1."""
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def base(written, tmp_path) -> Path:
    """A copy that a test may change, with version 1 of numbers alone."""
    folder = tmp_path / "saved_models"
    for name in ("numbers/1", "texts/7", "classifier/1"):
        shutil.copytree(written / name, folder / name)
    return folder


def put(written: Path, base: Path, name: str) -> None:
    """Another version, which appears at once."""
    partial = base.parent / "partial"
    shutil.copytree(written / name, partial)
    (base / name).parent.mkdir(exist_ok=True)
    os.replace(partial, base / name)


class Server:
    """`python -m gpt_keras.serve` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "gpt_keras.serve", str(folder), "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), (line, self.process.stderr.read() if not line else "")
        self.port = int(line.split(";")[0].rpartition(":")[2])
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.log.extend(self.process.stderr or ())

    def ask(self, method: str, path: str, body=None, headers=None):
        """Status, headers, and body, parsed where it is JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        content = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        found, text = dict(answer.getheaders()), answer.read().decode()
        connection.close()
        if found.get("content-type", "").startswith("application/json") and text:
            return answer.status, found, json.loads(text)
        return answer.status, found, text

    def resident_bytes(self) -> int:
        """Memory that the process has."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def wait_ready(self) -> None:
        wait_until(lambda: self.ask("GET", "/readyz")[0] == 200, PATIENCE)

    def end(self, kill: bool = False) -> int:
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        code = self.process.wait(30)
        self._reader.join(10)
        return code


def wait_until(holds, seconds: float = 60.0) -> None:
    """Until `holds()`; fails after a while."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


def save_chat_model(tokenizer, folder: Path, context_length: int) -> Path:
    """A model of random weights with a chat template; greedy texts of it never end by themselves."""
    import gpt_keras
    from gpt_keras.config import GPTConfig
    from gpt_keras.data.conversations import DEFAULT_TEMPLATE

    tokenizer = tokenizer.with_special(["<|system|>", "<|user|>", "<|assistant|>"]).with_template(DEFAULT_TEMPLATE)
    config = GPTConfig.from_preset(
        "nano", vocabulary_size=640, context_length=context_length, initializer_range=0.3, tie_embeddings=True
    )
    model = build(config)
    table = model.embedding.token_embedding
    weights = np.array(table)
    weights[list(tokenizer.end_ids)] = 0.0  # whose logits are then 0, and others' above it
    table.assign(weights)
    gpt_keras.LanguageModel(model, tokenizer).save(folder)
    return folder
