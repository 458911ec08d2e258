"""Where models come from: folders, the hub's cache, packages."""

import shutil

import pytest

import gpt_keras
from gpt_keras.data.errors import InputError
from gpt_keras.folder import save_folder

from .conftest import build


@pytest.fixture
def folder(config, tokenizer, tmp_path):
    save_folder(build(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch):
    """A hub cache as huggingface_hub lays it out, with one model in it, and no network."""
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "snapshots").mkdir(parents=True)
    shutil.copytree(folder, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_model_in_the_hub_s_cache_opens_without_a_network(hub_cache, folder):
    lm = gpt_keras.load("hf:someone/tiny")
    assert lm.tokenizer.fingerprint == gpt_keras.load(folder).tokenizer.fingerprint


@pytest.mark.parametrize("name", ["someone/else", "not a name", ""])
def test_a_model_that_is_not_there_is_one_clear_line(hub_cache, name):
    with pytest.raises(InputError, match="neither in the hub's cache nor to be downloaded") as error:
        gpt_keras.load(f"hf:{name}")
    assert "\n" not in str(error.value)


def test_what_is_saved_again_is_the_same(folder, tmp_path):
    lm = gpt_keras.load(folder)
    for _ in range(5):
        lm.save(tmp_path / "again")
        for file in folder.iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
