"""The folder of SavedModels changes while it is served."""

import shutil
import threading

import numpy as np
import pytest

from gpt_keras.serving.errors import RequestError
from gpt_keras.serving.servables import SavedModels

from .conftest import put, wait_until

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def models(base):
    models = SavedModels(base, {"numbers": {"old": 1}}, poll_seconds=0.05)
    yield models
    models.close()


def state(models, name, version):
    return next(known for number, known in models.states(name) if number == version)


def answer(models, name="numbers", **which) -> float:
    _, servable = models.get(name, **which)
    return float(servable.run("", {"x": np.array([1.0], np.float32)})["y"][0])


def test_new_versions_take_over_and_labelled_ones_stay(models, written, base):
    models.refresh()
    assert models.names() == ["classifier", "numbers", "texts"] and answer(models) == 2.0
    put(written, base, "numbers/2")
    models.refresh()
    assert answer(models) == 3.0 and answer(models, label="old") == answer(models, version=1) == 2.0
    put(written, base, "numbers/3")
    models.refresh()
    assert answer(models) == 4.0 and answer(models, version=1) == 2.0
    wait_until(lambda: state(models, "numbers", 2).state == "END")
    with pytest.raises(RequestError, match="Specific"):
        models.get("numbers", version=2)


def test_all_versions_are_kept_where_that_is_asked_for(written):
    models = SavedModels(written, all_versions=True)
    models.refresh()
    assert [answer(models, version=number) for number in (1, 2, 3)] == [2.0, 3.0, 4.0]
    models.close()


@pytest.mark.parametrize("damage", ["empty", "truncated", "no variables", "garbage"])
def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_tried_again_when_it_changes(
    models, written, base, damage
):
    models.refresh()
    bad = base / "numbers" / "2"
    if damage == "empty":
        bad.mkdir()
    else:
        shutil.copytree(written / "numbers" / "2", bad)
        graph = bad / "saved_model.pb"
        if damage == "truncated":
            graph.write_bytes(graph.read_bytes()[:1000])
        elif damage == "garbage":
            graph.write_bytes(b"\xff" * 1000)
        else:
            shutil.rmtree(bad / "variables")
    for _ in range(2):
        models.refresh()
        assert answer(models) == 2.0
        failed = state(models, "numbers", 2)
        assert failed.state == "END" and failed.code != "OK" and failed.message
        assert str(base) not in failed.message and str(base.parent) not in failed.message
    shutil.rmtree(bad)
    put(written, base, "numbers/2")
    models.refresh()
    assert answer(models) == 3.0 and state(models, "numbers", 2).state == "AVAILABLE"


def test_what_is_removed_from_the_disk_is_unloaded(models, base):
    models.refresh()
    shutil.rmtree(base / "texts")
    shutil.rmtree(base / "numbers" / "1")
    models.refresh()
    assert models.names() == ["classifier"]
    with pytest.raises(RequestError, match="Latest"):
        models.get("texts")
    shutil.rmtree(base)
    models.refresh()
    assert models.names() == []


def test_requests_never_notice_a_change_of_versions(models, written, base):
    models.start()
    wait_until(lambda: models.looked)
    failures, values, going = [], set(), threading.Event()

    def ask():
        while not going.is_set():
            try:
                values.add(answer(models))
            except RequestError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in ("numbers/2", "numbers/3"):
        put(written, base, version)
        wait_until(lambda: answer(models) == float(version[-1]) + 1.0)  # noqa: B023
    going.set()
    for thread in threads:
        thread.join()
    assert not [error for error in failures if error.code != "UNAVAILABLE"] and values == {2.0, 3.0, 4.0}
    assert len(failures) <= 2  # of requests caught between finding a version and running it


def test_a_version_that_is_unloaded_ends_what_it_runs(models, base):
    models.refresh()
    _, servable = models.get("numbers")
    found = []
    slow = {"x": np.array([2.0], np.float32)}
    thread = threading.Thread(target=lambda: found.append(float(servable.run("slow", slow)["y"][0])))
    thread.start()
    wait_until(lambda: servable._running == 1)
    shutil.rmtree(base / "numbers")
    models.refresh()
    assert state(models, "numbers", 1).state == "UNLOADING" and not found
    with pytest.raises(RequestError, match="unloaded"):
        servable.run("", slow)
    thread.join()
    assert found == [2_000_000.0]
    wait_until(lambda: state(models, "numbers", 1).state == "END")


def test_a_version_that_is_taken_back_gives_way_to_the_one_before(models, written, base):
    models.refresh()
    put(written, base, "numbers/2")
    models._labels.clear()
    models.refresh()
    wait_until(lambda: state(models, "numbers", 1).state == "END")
    assert answer(models) == 3.0
    shutil.rmtree(base / "numbers" / "2")
    models.refresh()
    assert answer(models) == 2.0


def test_a_damaged_new_version_does_not_bring_a_labelled_old_one_to_the_front(models, written, base):
    put(written, base, "numbers/2")
    models.refresh()
    (base / "numbers" / "3").mkdir()
    models.refresh()
    assert answer(models) == 3.0 and answer(models, label="old") == 2.0


def test_version_folders_may_have_leading_zeros(models, base):
    (base / "numbers" / "1").rename(base / "numbers" / "00000005")
    models.refresh()
    assert answer(models, version=5) == 2.0


def test_a_look_that_fails_is_not_the_last_one(models, written, base, monkeypatch):
    failing = threading.Event()
    whole = SavedModels._on_disk

    def sometimes(self):
        if failing.is_set():
            raise OSError("the disk is gone")
        return whole(self)

    monkeypatch.setattr(SavedModels, "_on_disk", sometimes)
    failing.set()
    models.start()
    wait_until(lambda: models._thread.is_alive())
    assert not models.looked
    failing.clear()
    wait_until(lambda: models.looked)
    assert answer(models) == 2.0
