"""Attention maps against transformers, the pictures of them, and the command that shows them."""

import dataclasses
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from gpt_keras import command
from gpt_keras.attention_maps import Inspection, display_text, draw, draw_attention, look, save_picture, visible
from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.folder import save_folder
from gpt_keras.inspect import InspectOptions, main, show
from gpt_keras.language_model import LanguageModel

from .conftest import PATIENCE, build, random_ids

BASE = GPTConfig(
    vocabulary_size=512, context_length=64, num_layers=2, hidden_dim=32, num_heads=4, initializer_range=0.3
)
LLAMA = {"position": "rotary", "normalization": "rms_norm", "feed_forward": "swiglu", "use_bias": False}
TYPES = {"gpt2": {}, "openai-gpt": {"norm_order": "post"}, "llama": {**LLAMA, "num_key_value_heads": 2}}
PROMPT = "def find_word(tree):\n    return len(tree)"


def config_of(name: str) -> GPTConfig:
    return dataclasses.replace(BASE, **{"num_key_value_heads": None, **TYPES[name]})


@pytest.fixture
def config() -> GPTConfig:
    return dataclasses.replace(config_of("llama"), qk_norm=True)


@pytest.fixture
def lm(config, tokenizer) -> LanguageModel:
    return LanguageModel(build(config), tokenizer)


def fake(num_layers: int, num_heads: int, length: int) -> Inspection:
    scores = np.random.default_rng(0).random((num_layers, num_heads, length, length)) * np.tri(length)
    attention = list((scores / scores.sum(-1, keepdims=True)).astype(np.float32))
    return Inspection("x" * length, ["·word"] * length, attention, [("·next", 0.75), ("a", 0.0001)])


def read_png(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path, format="png")


@pytest.mark.parametrize("kind", TYPES)
def test_maps_are_those_of_transformers(kind, tokenizer, tmp_path):
    import torch
    import transformers

    model = build(config_of(kind))
    save_folder(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    ids = random_ids((2, 20), 512)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.astype(np.int64)), output_attentions=True).attentions
    maps = model.attention_maps(ids)
    assert len(maps) == len(expected) == 2
    for ours, those in zip(maps, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), those.numpy(), atol=1e-5)


def test_rows_add_up_to_one_and_none_looks_ahead(model):
    for maps in model.attention_maps(random_ids((2, 20), 512)):
        maps = np.asarray(maps)
        assert maps.shape == (2, 4, 20, 20) and maps.dtype == np.float32
        np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-5)
        assert (np.triu(maps, 1) == 0.0).all()


def test_attention_is_its_probabilities_times_the_values(model):
    attention = model.blocks[0].attention
    x = np.random.default_rng(0).normal(size=(2, 20, 32)).astype(np.float32)
    query, key, value = attention.project(x)
    gathered = np.asarray(attention.probabilities(query, key)) @ np.repeat(value, 2, axis=1)  # each serves two heads
    merged = gathered.transpose(0, 2, 1, 3).reshape(2, 20, 32)
    np.testing.assert_allclose(np.asarray(attention(x)), np.asarray(attention.output_projection(merged)), atol=1e-4)


def test_positions_count_only_by_their_distance_where_they_are_rotary(model):
    ids, places = random_ids((2, 20), 512), np.arange(20, dtype=np.int32)[None].repeat(2, axis=0)
    plain, shifted, spread = (model.attention_maps(ids, p) for p in (None, places + 20, places * 3))
    for a, b in zip(plain, shifted, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4)
    assert np.abs(np.asarray(plain[0]) - np.asarray(spread[0])).max() > 0.01


def test_next_tokens_are_the_softmax_of_the_logits(lm):
    ids = [lm.tokenizer.begin_id, *lm.tokenizer.encode(PROMPT)]
    logits = np.asarray(lm.model(np.array([ids], np.int32)))[0, -1].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    inspection = look(lm, PROMPT, top=7)
    best = np.argsort(-probabilities)[:7]
    assert [text for text, _ in inspection.next_tokens] == [display_text(lm.tokenizer, int(i)) for i in best]
    np.testing.assert_allclose([share for _, share in inspection.next_tokens], probabilities[best], rtol=1e-4)


def test_tokens_show_what_leaves_no_ink(lm):
    tokens = look(lm, PROMPT).tokens
    assert tokens[0] == "<s>"
    assert "".join(tokens[1:]) == visible(PROMPT) == "def·find_word(tree):↵····return·len(tree)"
    shown = [display_text(lm.tokenizer, i) for i in lm.tokenizer.encode("\t🎉")]
    assert shown == ["→", "\\xf0", "\\x9f", "\\x8e", "\\x89"]


def test_attends_to_gives_the_largest_means_first():
    layers = [np.array([[[1, 0], [0.75, 0.25]]], np.float32), np.array([[[1, 0], [0.0, 1.0]]], np.float32)]
    inspection = Inspection("ab", ["a", "b"], layers, [])
    assert inspection.attends_to(2) == [[(0, 1.0)], [(1, 0.625), (0, 0.375)]]
    assert inspection.attends_to(1, layer=0) == [[(0, 1.0)], [(0, 0.75)]]


@pytest.mark.parametrize(
    ("shape", "layer"), [((2, 2, 1), None), ((2, 3, 12), 1), ((1, 1, 256), None), ((12, 12, 64), None)]
)
def test_a_picture_is_of_a_size_to_look_at(shape, layer, tmp_path):
    save_picture(draw(fake(*shape), layer), tmp_path / "map.PNG")
    picture = read_png(tmp_path / "map.PNG")
    assert all(600 <= side <= 3200 for side in picture.shape[:2])
    assert picture.std() > 0.05
    border = np.concatenate([picture[:8].reshape(-1, 4), picture[-8:].reshape(-1, 4), picture[:, -8:].reshape(-1, 4)])
    assert (border == 1.0).all()  # nothing is cut off


def test_characters_that_the_font_lacks_are_escaped(lm, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_attention(lm, "$x$ 你好 🎉 e\u0301 \u200b", tmp_path / "map.svg", layer=0, top=3)
    assert r"$x$·\u4f60\u597d·\U0001f389·e\u0301·\u200b" in " ".join(text.get_text() for text in figure.texts)
    assert (tmp_path / "map.svg").read_text("utf-8").rstrip().endswith("</svg>")


def test_drawing_leaves_pyplot_alone():
    from matplotlib import pyplot

    draw(fake(1, 2, 3))
    assert pyplot.get_fignums() == []


def test_the_command_draws_and_prints(lm, tmp_path):
    lm.save(tmp_path / "model")
    arguments = [sys.executable, "-m", "gpt_keras.inspect", "model", "--prompt", PROMPT, "--top", "3", "--json"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    expected = look(lm, PROMPT, top=3)
    assert shown["tokens"] == expected.tokens
    for entry, (token, share) in zip(shown["next_tokens"], expected.next_tokens, strict=True):
        assert entry["token"] == token and entry["probability"] == pytest.approx(share, rel=1e-3)
    assert [row[0]["position"] for row in shown["attends_to"]] == [row[0][0] for row in expected.attends_to(1)]
    assert read_png(tmp_path / shown["picture"]).std() > 0.05


def run(*arguments) -> int:
    argv = [str(argument) for argument in arguments]
    return command.run(main, InspectOptions, "python -m gpt_keras.inspect", argv)


def test_the_tables_name_tokens_and_shares(lm, tmp_path, capsys):
    lm.save(tmp_path / "model")
    assert run(tmp_path / "model", "--prompt", PROMPT, "--layer", 1, "--output", tmp_path / "map.pdf") == 0
    shown = capsys.readouterr().out
    token, share = look(lm, PROMPT).next_tokens[0]
    assert token in shown and f"{100 * share:.1f} %" in shown
    assert "mean of the heads of layer 1" in shown and "<s> 100 %" in shown
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    one = np.ones((1, 1, 1), np.float32)
    show(Inspection("x", ["[red]"], [one], [("[/b]", 1.0)]), InspectOptions("model", "x"))
    shown = capsys.readouterr().out  # tokens are no markup
    assert "[red] 100 %" in shown and "[/b]" in shown and "attention.png" in shown


def test_bad_input_is_one_line_and_leaves_nothing(lm, tmp_path, capsys):
    lm.save(tmp_path / "model")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    cases = [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x " * 300], "more than the model's context: shorten it to 64 tokens"),
        (["--prompt", "x", "--layer", 2], "layer 2 is out of range: the model's 2 layers are 0 to 1"),
        (["--prompt", "x", "--layer", -1], "layer -1 is out of range"),
        (["--prompt", "x", "--top", 0], "top must be from 1 to"),
        (["--prompt", "x", "--output", tmp_path / "map.docx"], "pictures are written as .png, .svg, .pdf"),
        (["--prompt", "x", "--output", tmp_path / "folder.png"], "is a folder"),
        (["--prompt", PROMPT, "--output", tmp_path / "file" / "map.png"], "file"),
        (["--prompt", "x", "--outptu", "y.png"], "did you mean --output"),
    ]
    for arguments, message in cases:
        assert run(tmp_path / "model", "--output", tmp_path / "map.png", *arguments) == 2, arguments
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert run(tmp_path / "nowhere", "--prompt", "x") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "model"]


def test_a_long_prompt_is_refused_whatever_the_context(tokenizer):
    long = LanguageModel(build(dataclasses.replace(BASE, context_length=1024)), tokenizer)
    with pytest.raises(InputError, match="shorten it to 256 tokens"):
        look(long, "x " * 400)


def test_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(InputError, match="no tokenizer"):
        look(LanguageModel(model, None), "x")
