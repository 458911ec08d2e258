"""A model from export to answers: our server, both clients, and what docker compose counts on."""

import json
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from gpt_keras.language_model import LanguageModel

from ..conftest import build
from ..data.test_hub_tokenizer import write_byte_level
from .conftest import Server

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROMPTS = ["def parse_line(", "", "é🎉"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    from gpt_keras.config import GPTConfig
    from gpt_keras.data.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    write_byte_level(folder, chat_template=template + "<|im_start|>assistant\n")
    config = GPTConfig.from_preset("nano", vocabulary_size=512, context_length=96, initializer_range=0.3)
    return LanguageModel(build(config), Tokenizer.load(folder))


@pytest.fixture(scope="module")
def saved_models(lm, tmp_path_factory) -> Path:
    from gpt_keras.exporting.saved_model import export_saved_model

    base = tmp_path_factory.mktemp("saved_models")
    export_saved_model(lm.model, lm.tokenizer, base / "tiny", 16, weights="int8")
    return base


@pytest.fixture(scope="module")
def server(saved_models):
    server = Server(saved_models)
    server.wait_ready()
    yield server
    server.end()


def predict(server, **body):
    status, _, found = server.ask("POST", "/v1/models/tiny:predict", body)
    assert status == 200, found
    return found


def test_every_signature_answers_over_http(server, lm):
    assert len(predict(server, instances=PROMPTS)["predictions"]) == 3
    row = {"text": "def", "max_new_tokens": 4, "temperature": 0.8, "seed": 7, "stop": ["zzz"]}
    (found,) = predict(server, signature_name="generate", instances=[row])["predictions"]
    assert set(found) == {"generated_text", "prompt_tokens", "generated_tokens", "finish_reason", "truncated"}
    assert found["truncated"] is False and found["generated_tokens"] <= 4
    chat = {"roles": [["user"]], "contents": [["hi"]]}
    assert set(predict(server, signature_name="chat", inputs=chat)["outputs"]) >= {"reply", "finish_reason"}
    scores = predict(server, signature_name="score", instances=["def parse", "x"])["predictions"]
    assert [row["tokens"] for row in scores] == [len(lm.tokenizer.encode(text)) for text in ("def parse", "x")]
    labels = {"text": ["def "], "labels": [["parse", "read"]]}
    assert predict(server, signature_name="classify", inputs=labels)["outputs"]["label"][0] in ("parse", "read")
    (embedding,) = predict(server, signature_name="embed", instances=["def"])["predictions"]
    assert len(embedding["embedding"]) == lm.config.hidden_dim
    (tokens,) = predict(server, signature_name="tokenize", instances=["def parse"])["predictions"]
    assert tokens["token_ids"] == lm.tokenizer.encode("def parse")
    text = predict(server, signature_name="detokenize", instances=[tokens["token_ids"]])["predictions"]
    assert text == ["def parse"]


def test_text_that_the_model_breaks_comes_as_valid_json(server):
    body = json.dumps(
        {"signature_name": "generate", "instances": [{"text": "🎉", "temperature": 2.0, "seed": s} for s in range(8)]}
    )
    status, _, found = server.ask("POST", "/v1/models/tiny:predict", body)
    assert status == 200 and len(found["predictions"]) == 8


def test_the_rest_client(server):
    client = runpy.run_path(str(ROOT / "pipelines" / "clients" / "rest_client.py"))
    found = client["generate"](f"http://127.0.0.1:{server.port}", "tiny", PROMPTS, max_new_tokens=6)
    assert [row["generated_text"] for row in found] == _plain(server, 6)
    with pytest.raises(SystemExit, match="404: Servable not found"):
        client["generate"](f"http://127.0.0.1:{server.port}", "nope", PROMPTS)


def _plain(server, count: int) -> list[str]:
    rows = [{"text": text, "max_new_tokens": count} for text in PROMPTS]
    found = predict(server, signature_name="generate", instances=rows)["predictions"]
    return [row["generated_text"] for row in found]


def test_the_grpc_client(server, saved_models):
    """Against the same service as TF Serving's, which here runs the version in this process."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from gpt_keras.serving.servables import SavedModels

    models = SavedModels(saved_models)
    models.refresh()

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            _, servable = models.get(request.model_spec.name)
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            assert {len(value) for value in inputs.values()} == {len(PROMPTS)}
            answer = predict_pb2.PredictResponse()
            for name, value in servable.run(request.model_spec.signature_name, inputs).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return answer

    with ThreadPoolExecutor(1) as threads:
        service = grpc.server(threads)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), service)
        port = service.add_insecure_port("127.0.0.1:0")
        service.start()
        client = runpy.run_path(str(ROOT / "pipelines" / "clients" / "grpc_client.py"))
        found = client["generate"](f"127.0.0.1:{port}", "tiny", PROMPTS, max_new_tokens=6, temperature=0.0)
        service.stop(None).wait()
    models.close()
    assert found == _plain(server, 6)


def test_a_version_is_warmed_up_before_it_answers_and_damaged_requests_for_it_are_said(saved_models, tmp_path):
    from gpt_keras.serving.servables import SavedModels

    base = tmp_path / "copy"
    shutil.copytree(saved_models, base)
    path = base / "tiny" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes(path.read_bytes()[:-5])
    for warm_up in (True, False):
        models = SavedModels(base, warm_up=warm_up)
        models.refresh()
        ((_, known),) = models.states("tiny")
        assert (known.state, known.code) == (("END", "DATA_LOSS") if warm_up else ("AVAILABLE", "OK"))
        assert known.message.startswith("the requests to warm up with are damaged") == warm_up
        assert str(base) not in known.message
        models.close()


def test_docker_compose_names_what_an_export_writes(saved_models):
    (service,) = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    assert service["volumes"] == ["./saved_models:/models:ro"]
    files = [flag.partition("=/models/${MODEL:-default}/")[2] for flag in service["command"] if "/models/" in flag]
    assert len(files) == 2 and all((saved_models / "tiny" / name).is_file() for name in files)
