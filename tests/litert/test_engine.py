"""The fast engine: made once for each model, in a process of its own if wanted, which may die."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

import gpt_keras
from gpt_keras.data.errors import InputError
from gpt_keras.exporting.litert import export_litert
from gpt_keras.folder import save_folder
from gpt_keras.litert import engine, store
from gpt_keras.litert.engine import load_with
from gpt_keras.litert.worker import WorkerError
from gpt_keras.sampling_options import SamplingOptions

from ..conftest import build, slow_but

pytestmark = pytest.mark.tensorflow
PROMPTS = ["def main(", "import os\n", "x"]


@pytest.fixture
def folder(config, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv(store.CACHE, str(tmp_path / "cache"))
    save_folder(build(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def folders(tmp_path):
    return [path for path in (tmp_path / "cache" / "litert").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_file_is_made_once_for_what_a_model_holds(folder, config, tokenizer, tmp_path):
    said = []
    expected = gpt_keras.load(folder).generate(PROMPTS, max_new_tokens=8)
    assert type(load_with(folder, "auto", make=False)) is gpt_keras.LanguageModel
    for _ in range(2):
        lm = load_with(folder, "auto", say=said.append)
        assert lm.generate(PROMPTS, max_new_tokens=8) == expected
    assert len(said) == 1 and "once" in said[0]
    assert isinstance(load_with(folder, "auto", make=False), engine.FastLanguageModel)
    (made,) = folders(tmp_path)
    (made.parent / "old").mkdir()
    for old in folders(tmp_path):
        os.utime(old, (0, 0))
    load_with(folder, "auto")
    save_folder(build(config, seed=1), tokenizer, folder)
    other = load_with(folder, "litert", say=said.append)
    assert len(said) == 2 and len(folders(tmp_path)) == 2 and made in folders(tmp_path)
    assert other.generate(PROMPTS, max_new_tokens=8) == gpt_keras.load(folder).generate(PROMPTS, max_new_tokens=8)
    assert other.score("def") == pytest.approx(gpt_keras.load(folder).score("def"))  # by Keras


def test_all_that_ends_a_text_does(folder, tokenizer, tmp_path):
    ids = {"bos_token_id": tokenizer.begin_id, "eos_token_id": [tokenizer.end_id, 300, 301], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    assert load_with(folder, "litert").tokenizer.end_ids == {tokenizer.end_id, 300, 301}


@pytest.mark.slow
def test_an_open_file_takes_no_memory_until_it_is_run(folder, tmp_path):
    lm = load_with(folder, "litert")
    (made,) = folders(tmp_path)

    def mapped():
        """kB of the file in this process's memory, of each part of it that is mapped."""
        regions = Path("/proc/self/smaps").read_text().split(str(made / "model.tflite"))[1:]
        return [int(region.split("Rss:")[1].split()[0]) for region in regions]

    assert mapped() and sum(mapped()) == 0
    assert lm.generate(PROMPTS, max_new_tokens=8) and sum(mapped()) > 0


@pytest.mark.parametrize("exported", slow_but([False, True], True))
def test_threads_take_turns(exported, folder, tmp_path):
    keras = gpt_keras.load(folder)
    expected, found = keras.generate(PROMPTS, max_new_tokens=24), {}
    if exported:
        export_litert(keras.model, keras.tokenizer, tmp_path / "model.tflite", "float32", 96)
    lm = load_with(tmp_path / "model.tflite" if exported else folder, "litert")

    def write(place):
        found[place] = [lm.generate(PROMPTS[place], max_new_tokens=24) for _ in range(12)]

    threads = [threading.Thread(target=write, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {place: [text] * 12 for place, text in enumerate(expected)}


@pytest.mark.slow
def test_several_make_it_once(folder, tmp_path):
    said = []
    threads = [threading.Thread(target=load_with, args=(folder, "litert", True, False, said.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    (made,) = folders(tmp_path)
    assert not [path for path in made.iterdir() if "partial" in path.name]
    assert len(list(made.glob("packed_*"))) == 1


def test_what_cannot_be_made_is_told_and_auto_does_without(folder, monkeypatch):
    monkeypatch.setenv(store.CACHE, "/dev/null/cache")
    with pytest.raises(InputError, match="/dev/null"):
        load_with(folder, "litert")
    said = []
    assert type(load_with(folder, "auto", say=said.append)) is gpt_keras.LanguageModel
    assert "Keras runs" in said[-1]
    with pytest.raises(InputError, match="no model folder there"):
        load_with(folder / "none", "auto")


def test_a_process_of_its_own_writes_the_same_and_may_die(folder):
    lm, apart = load_with(folder, "litert"), load_with(folder, "litert", apart=True)
    options = {"max_new_tokens": 10, "temperature": 0.9, "seed": 3, "num_sequences": 2}
    ours = apart.generate(PROMPTS, **options)
    assert ours == lm.generate(PROMPTS, **options)
    running = apart.generator.run([[1, 2, 3]], SamplingOptions(max_new_tokens=30))
    next(running)
    before = apart.decoder.process
    os.kill(before.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="ended"):
        list(running)
    assert apart.generate(PROMPTS, **options) == ours and apart.decoder.process.pid != before.pid
    process = apart.decoder.process
    apart.decoder._finalizer()
    assert process.poll() == 0


@pytest.mark.slow
def test_a_process_that_cannot_begin_is_told(folder):
    made = store.obtain(str(folder), "float32")
    (made / "model.tflite").write_bytes(b"TFL3" * 1000)
    for apart in (True, False):
        with pytest.raises(InputError, match="not a whole LiteRT file"):
            load_with(folder, "litert", apart=apart)
    assert type(load_with(folder, "auto", apart=True)) is gpt_keras.LanguageModel
