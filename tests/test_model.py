"""The model's promises, for every option of every part."""

import dataclasses

import keras
import numpy as np
import pytest

from gpt_keras import kernels
from gpt_keras.config import GPTConfig
from gpt_keras.layers import OutputHead, sinusoids
from gpt_keras.model import GPT
from gpt_keras.training.loss import NextTokenLoss

from .conftest import build, random_ids

BASE = GPTConfig(
    vocabulary_size=61,
    context_length=24,
    num_layers=2,
    hidden_dim=32,
    num_heads=4,
    initializer_range=0.3,
)
CHANGES = {
    "gpt2": {},
    "sinusoidal": {"position": "sinusoidal"},
    "rotary": {"position": "rotary"},
    "rms_norm": {"normalization": "rms_norm"},
    "post_norm": {"norm_order": "post"},
    "post_norm_rms": {"norm_order": "post", "normalization": "rms_norm"},
    "swiglu": {"feed_forward": "swiglu"},
    "qk_norm": {"qk_norm": True},
    "grouped_query": {"num_key_value_heads": 2},
    "multi_query": {"num_key_value_heads": 1},
    "wide_heads": {"head_dim": 16},
    "no_bias": {"use_bias": False},
    "untied": {"tie_embeddings": False},
    "dropout": {"dropout": 0.1},
    "llama": {
        "position": "rotary",
        "normalization": "rms_norm",
        "feed_forward": "swiglu",
        "num_key_value_heads": 2,
        "use_bias": False,
    },
    "qwen3": {
        "position": "rotary",
        "normalization": "rms_norm",
        "feed_forward": "swiglu",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "qk_norm": True,
        "use_bias": False,
    },
}
DERIVED = {"head_dim": None, "num_key_value_heads": None}
OPTIONS = pytest.mark.parametrize(
    "config",
    [dataclasses.replace(BASE, **{**DERIVED, **change}) for change in CHANGES.values()],
    ids=list(CHANGES),
)


def logits_of(model: GPT, ids: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(ids)))


@OPTIONS
def test_a_later_token_never_changes_earlier_logits(config):
    model, ids = build(config), random_ids((2, 20), 61)
    before = logits_of(model, ids)
    for place in (1, 10, 19):
        changed = ids.copy()
        changed[:, place] = (changed[:, place] + 7) % 61
        after = logits_of(model, changed)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place] - before[:, place]).max() > 1e-3


@OPTIONS
def test_every_earlier_token_is_seen(config):
    model, ids = build(config), random_ids((1, 12), 61)
    before = logits_of(model, ids)[0, -1]
    for place in range(12):
        changed = ids.copy()
        changed[0, place] = (changed[0, place] + 7) % 61
        assert np.abs(logits_of(model, changed)[0, -1] - before).max() > 1e-4


@OPTIONS
def test_order_matters(config):
    model, ids = build(config), np.arange(10, dtype=np.int32)[None]
    swapped = ids.copy()
    swapped[0, [2, 5]] = swapped[0, [5, 2]]
    assert np.abs(logits_of(model, ids)[0, -1] - logits_of(model, swapped)[0, -1]).max() > 1e-4


@OPTIONS
def test_cached_and_uncached_logits_agree(config):
    """Prefill of rows of different lengths, then token by token, gives what one pass over the whole gives."""
    model, ids = build(config), random_ids((3, 20), 61)
    whole = logits_of(model, ids)
    lengths = np.array([5, 9, 2], np.int32)
    prompt = ids[:, :9].copy()
    for row, length in enumerate(lengths):
        prompt[row, length:] = 60  # padding, which nobody may see
    positions = np.tile(np.arange(9, dtype=np.int32), (3, 1))
    cache = model.make_cache(3, 24)
    logits, cache = model.step(prompt, positions, cache=cache, select=lengths - 1)
    np.testing.assert_allclose(np.asarray(logits)[:, 0], whole[np.arange(3), lengths - 1], atol=1e-5)
    for number in range(10):
        places = lengths + number
        tokens = ids[np.arange(3), places][:, None]
        logits, cache = model.step(tokens, places[:, None], cache=cache)
        np.testing.assert_allclose(np.asarray(logits)[:, 0], whole[np.arange(3), places], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("cached", [False, True])
@OPTIONS
def test_the_logits_of_one_token_are_those_of_the_whole_pass(config, cached, rows):
    model, ids = build(config), random_ids((3, 12), 61)
    positions, select = np.tile(np.arange(12, dtype=np.int32), (3, 1)), np.array([11, 4, 0], np.int32)
    mask = np.random.default_rng(0).random((rows, 12, 12)) < 0.5
    mask |= np.eye(12, dtype=bool)
    whole, chosen = (
        np.asarray(model.step(ids, positions, mask, model.make_cache(3, 12) if cached else None, select=which)[0])
        for which in (None, select)
    )
    np.testing.assert_allclose(chosen[:, 0], whole[np.arange(3), select], atol=1e-5)


def test_a_mask_hides_what_it_covers():
    model, ids = build(BASE), random_ids((1, 10), 61)
    mask = np.ones((1, 10, 10), bool)
    mask[0, 5:, :5] = False  # a document boundary
    positions = np.concatenate([np.arange(5), np.arange(5)]).astype(np.int32)[None]
    logits, _ = model.step(ids, positions, mask)
    alone = logits_of(model, ids[:, 5:])
    np.testing.assert_allclose(np.asarray(logits)[:, 5:], alone, atol=1e-5)


def packed(documents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Documents behind one another in one row."""
    parts = [(document, np.arange(len(document)), np.full(len(document), i)) for i, document in enumerate(documents)]
    rows = [np.concatenate(part)[None].astype("int32") for part in zip(*parts, strict=True)]
    return dict(zip(("token_ids", "positions", "segment_ids"), rows, strict=True))


@OPTIONS
def test_documents_in_one_row_do_not_see_each_other(config):
    model, ids = build(config), random_ids((20,), 61)
    documents = [ids[:7], ids[7:8], ids[8:]]
    together = logits_of(model, packed(documents))
    alone = np.concatenate([logits_of(model, document[None]) for document in documents], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    changed = logits_of(model, packed([(ids[:7] + 5) % 61, *documents[1:]]))
    np.testing.assert_array_equal(changed[:, 7:], together[:, 7:])
    assert np.abs(changed[:, :7] - together[:, :7]).max() > 1e-3


def test_packed_documents_may_be_longer_than_the_context_together():
    ids = random_ids(36, BASE.vocabulary_size)
    documents = [ids[:12], ids[12:24], ids[24:]]  # of learned positions, 24 of them
    together = np.asarray(build(BASE)(packed(documents)))[0]
    alone = np.concatenate([logits_of(build(BASE), document[None])[0] for document in documents])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("normalization", ["layer_norm", "rms_norm"])
def test_a_model_in_bfloat16_throughout_trains(normalization):
    config = dataclasses.replace(BASE, normalization=normalization)
    model = GPT(config, dtype="bfloat16")
    model.compile("adam", NextTokenLoss())
    ids = random_ids((2, 9), config.vocabulary_size)
    assert np.isfinite(model.train_on_batch(ids[:, :-1], ids[:, 1:]))


def test_a_model_learns_from_packed_documents_as_from_those_alone():
    config = dataclasses.replace(BASE, position="rotary")
    ids = random_ids((21,), 61)
    first, second = ids[:10], ids[10:]
    row = packed([first[:-1], second[:-1]])
    targets = np.concatenate([first[1:], second[1:]])[None]
    weights = np.ones(targets.shape, "float32")
    model = build(config)
    model.compile("sgd", NextTokenLoss())
    losses = [float(model.train_on_batch(row, targets, weights)) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    other = build(config)
    padded = np.zeros((2, 10), "int32")
    padded_targets, padded_weights = padded.copy(), np.zeros((2, 10), "float32")
    for i, document in enumerate((first, second)):
        padded[i, : len(document) - 1], padded_targets[i, : len(document) - 1] = document[:-1], document[1:]
        padded_weights[i, : len(document) - 1] = 1.0
    other.compile("sgd", NextTokenLoss())
    alone = [float(other.train_on_batch(padded, padded_targets, padded_weights)) for _ in range(3)]
    np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_dropout_acts_on_packed_documents_in_training_only():
    model, row = build(dataclasses.replace(BASE, dropout=0.5)), packed([random_ids((9,), 61)])
    np.testing.assert_array_equal(logits_of(model, row), logits_of(model, row["token_ids"]))
    assert np.abs(np.asarray(model(row, training=True)) - logits_of(model, row)).max() > 1e-3


def test_a_step_with_a_cache_needs_positions(model):
    with pytest.raises(ValueError, match="positions"):
        model.step(np.zeros((1, 1), np.int32), cache=model.make_cache(1, 8))


@OPTIONS
def test_saving_round_trips(config, tmp_path):
    model, ids = build(config), random_ids((2, 16), 61)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert isinstance(loaded, GPT)
    assert loaded.config == config
    np.testing.assert_array_equal(logits_of(loaded, ids), logits_of(model, ids))


def test_a_tied_head_is_the_embedding():
    tied, untied = build(BASE), build(dataclasses.replace(BASE, tie_embeddings=False))
    assert untied.count_params() - tied.count_params() == 61 * 32
    before = logits_of(tied, random_ids((1, 4), 61))
    table = np.array(tied.embedding.token_embedding)
    table[3] *= 2.0  # a row that none of the inputs may use
    ids = np.array([[1, 2, 4, 5]], np.int32)
    before = logits_of(tied, ids)
    tied.embedding.token_embedding.assign(table)
    np.testing.assert_allclose(logits_of(tied, ids)[..., 3], 2.0 * before[..., 3], rtol=1e-5)


def test_parts_are_named_in_the_summary(capsys):
    build(BASE).summary()
    shown = capsys.readouterr().out
    for name in ("token_ids", "embedding", "block_0", "block_1", "final_norm", "output_head"):
        assert name in shown


def test_probabilities_are_a_distribution():
    probabilities = np.asarray(OutputHead.probabilities(build(BASE)(random_ids((2, 5), 61))))
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    assert probabilities.min() >= 0.0


def test_residual_projections_start_smaller_with_depth():
    config = dataclasses.replace(BASE, num_layers=8, hidden_dim=128, head_dim=None, intermediate_dim=None)
    model = build(dataclasses.replace(config, initializer_range=0.02))
    deviation = {weight.path: float(np.std(np.array(weight))) for weight in model.weights}
    assert deviation["block_3/attention/query/kernel"] == pytest.approx(0.02, rel=0.05)
    assert deviation["block_3/attention/output/kernel"] == pytest.approx(0.02 / 4.0, rel=0.05)
    assert deviation["block_3/feed_forward/down/kernel"] == pytest.approx(0.02 / 4.0, rel=0.05)


def test_dropout_acts_in_training_only():
    model, ids = build(dataclasses.replace(BASE, dropout=0.5)), random_ids((1, 8), 61)
    np.testing.assert_array_equal(logits_of(model, ids), logits_of(model, ids))
    trained = [np.asarray(model(ids, training=True)) for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


def test_sinusoids_are_the_papers():
    table = sinusoids(50, 16)
    assert table[7, 4] == pytest.approx(np.sin(7 / 10000 ** (4 / 16)), abs=1e-6)
    assert table[7, 5] == pytest.approx(np.cos(7 / 10000 ** (4 / 16)), abs=1e-6)


def test_rotary_attention_depends_on_distance_only():
    config = dataclasses.replace(BASE, position="rotary", context_length=200)
    model, ids = build(config), random_ids((1, 8), 61)
    at_start, _ = model.step(ids, np.arange(8, dtype=np.int32)[None])
    later, _ = model.step(ids, np.arange(100, 108, dtype=np.int32)[None])
    np.testing.assert_allclose(np.asarray(at_start), np.asarray(later), atol=1e-4)


def test_too_many_tokens_for_learned_positions_is_an_error():
    with pytest.raises(ValueError, match="25 tokens do not fit learned positions of context_length=24"):
        build(BASE)(np.zeros((1, 25), np.int32))


def test_a_model_learns_by_fit(tokenizer, corpus):
    from gpt_keras.data.pretraining import Batches
    from gpt_keras.training.loss import NextTokenLoss

    model = build(GPTConfig.from_preset("nano", vocabulary_size=512, context_length=64))
    model.compile(keras.optimizers.AdamW(3e-3), NextTokenLoss(), jit_compile="auto")
    batches = Batches(corpus.streams["train"], 64, 8)
    unseen = batches.batch(1000)

    def loss() -> float:
        return float(np.mean(np.asarray(kernels.cross_entropy(model(unseen[0]), unseen[1]))))

    assert loss() == pytest.approx(np.log(512), abs=0.1)
    model.fit(batches.dataset(0, 60), epochs=1, shuffle=False, verbose=0)
    assert loss() < 2.5


@pytest.mark.parametrize("change", [{}, {"dropout": 0.3}, {"norm_order": "post", "use_bias": True}])
def test_rematerializing_changes_no_training_step(change):
    tokens, targets = random_ids((4, 32), 61), random_ids((4, 32), 61, seed=1)

    def losses(rematerialize):
        keras.utils.set_random_seed(0)
        model = build(dataclasses.replace(BASE, context_length=32, **change))
        model.rematerialize = rematerialize
        model.compile(keras.optimizers.SGD(0.5), NextTokenLoss())
        return [float(model.train_on_batch(tokens, targets)) for _ in range(4)]

    plain = losses(False)
    assert plain[3] < plain[0]
    np.testing.assert_allclose(losses(True), plain, rtol=1e-5)
