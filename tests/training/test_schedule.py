import pytest

from gpt_keras.data.errors import InputError
from gpt_keras.training.options import TrainOptions
from gpt_keras.training.schedule import learning_rate_factor


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear"])
def test_the_rate_rises_then_falls(kind):
    factors = [learning_rate_factor(kind, step, step / 100, 10, 0.5) for step in range(101)]
    peak = factors.index(max(factors))
    assert factors[0] < 0.2 and 8 <= peak <= 10
    assert all(a >= b for a, b in zip(factors[peak:], factors[peak + 1 :], strict=False))
    assert factors[-1] == pytest.approx(0.1 if kind == "cosine" else 0.0)


def test_wsd_stays_until_the_decay():
    assert {learning_rate_factor("wsd", 50, share / 100, 10, 0.4) for share in range(10, 60)} == {1.0}


def test_a_budget_is_steps_or_minutes():
    assert TrainOptions().minutes == 5.5
    assert TrainOptions(steps=3).minutes is None
    with pytest.raises(InputError, match="not both"):
        TrainOptions(steps=3, minutes=1.0)


def test_options_lie_over_the_preset():
    config = TrainOptions(preset="gpt2", num_layers=3, hidden_dim=48, num_heads=4).model_config(300)
    assert (config.num_layers, config.hidden_dim, config.head_dim, config.vocabulary_size) == (3, 48, 12, 300)
    assert TrainOptions(preset="smollm2-135m").model_config().num_key_value_heads == 3
