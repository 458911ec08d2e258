"""`python -m gpt_keras.serve` as its users meet it: a process, over HTTP."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from .conftest import Server, put, wait_until

pytestmark = pytest.mark.tensorflow

KEY = "correct horse"
ONE = {"instances": [1.0]}
PREDICT = "/v1/models/numbers:predict"
POST = f"POST {PREDICT} HTTP/1.1\r\n".encode()


@pytest.fixture(scope="module")
def server(written):
    server = Server(written, "--label", "numbers:stable=2", "--max-body-mb", "0.1")
    server.wait_ready()
    yield server
    server.end()


def test_tf_serving_s_api(server):
    assert server.ask("POST", PREDICT, ONE)[::2] == (200, {"predictions": [4.0]})
    assert server.ask("POST", "/v1/models/numbers/labels/stable:predict", ONE)[2] == {"predictions": [3.0]}
    status, headers, body = server.ask("POST", "/v1/models/nope:predict", ONE)
    assert (status, body) == (404, {"error": "Servable not found for request: Latest(nope)"})
    assert headers["content-type"] == "application/json"
    assert server.ask("GET", "/v1/models/numbers")[2]["model_version_status"][0]["version"] == "3"
    assert server.ask("GET", "/v1/foo")[2] == {"error": "Malformed request: GET /v1/foo"}
    assert server.ask("GET", "/v1/models/a%2Fb%20%C3%A9/metadata")[2]["error"].endswith("Latest(a/b é)")


def test_health_readiness_and_figures(server):
    assert server.ask("GET", "/healthz")[::2] == (200, "ok\n")
    assert server.ask("GET", "/readyz")[::2] == (200, "3 models\n")
    server.ask("POST", PREDICT, ONE)
    text = server.ask("GET", "/metrics")[2]
    assert 'gpt_keras_requests_total{endpoint="/v1/models:predict",method="POST",status="200"}' in text
    assert "gpt_keras_request_seconds_bucket" in text and "gpt_keras_requests_waiting 0.0" in text


def test_any_path_is_one_of_few_in_the_figures(server):
    for number in range(20):
        server.ask("GET", f"/v1/models/m{number}:x{number}")
        server.ask("GET", f"/other/{number}")
    text = server.ask("GET", "/metrics")[2]
    assert "m1" not in text and "x1" not in text and "/other/1" not in text


def test_the_document_of_the_api_is_there(server):
    paths = server.ask("GET", "/openapi.json")[2]["paths"]
    assert "/v1/models/{model}:predict" in paths and "/healthz" in paths


def test_a_line_of_json_is_logged_for_every_request_without_what_it_asks(server):
    server.ask("POST", "/v1/models/texts:predict", {"instances": ["my secret"]})
    wait_until(lambda: any("texts:predict" in line for line in server.log))
    entry = json.loads(next(line for line in server.log if "texts:predict" in line))
    assert entry["method"] == "POST" and entry["status"] == 200 and entry["seconds"] >= 0
    assert not any("secret" in line for line in server.log)


def test_other_origins_and_errors_get_nothing_more(server):
    _, headers, _ = server.ask("POST", PREDICT, ONE, {"Origin": "https://example.org"})
    assert not [name for name in headers if name.lower().startswith("access-control")]
    body = {"signature_name": "checked", "instances": [-1.0]}
    status, _, answer = server.ask("POST", PREDICT, body)
    assert status == 400 and "x must be positive" in answer["error"] and "File " not in answer["error"]


def test_a_body_that_is_too_large_is_refused(server):
    large = json.dumps({"instances": [1.0] * 100_000})
    assert server.ask("POST", PREDICT, large)[0] == 413
    with socket.create_connection(("127.0.0.1", server.port)) as connection:  # in chunks, of no length said before
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        answer = b""
        connection.settimeout(20)
        try:
            for _ in range(20):
                connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            answer = connection.recv(1000)
        except ConnectionError:
            pass
        assert not answer or b" 413 " in answer
    assert server.ask("POST", PREDICT, ONE)[0] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Host: x\r\nContent-Length: 50\r\n\r\n{",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_hardly_http_does_no_harm(server, raw):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(1)
        try:
            connection.sendall(raw)
            connection.recv(1000)
        except OSError:
            pass
    assert server.ask("POST", PREDICT, ONE)[::2] == (200, {"predictions": [4.0]})


def test_a_key_is_asked_for_where_there_is_one(written):
    server = Server(written, "--api-key", KEY)
    try:
        server.wait_ready()  # without the key
        status, headers, body = server.ask("POST", PREDICT, ONE)
        assert status == 401 and headers["www-authenticate"] == "Bearer" and "Authorization" in body["error"]
        for wrong in ("Bearer nonsense", "Bearer", KEY, f"Basic {KEY}", "Bearer \xe9"):
            assert server.ask("POST", PREDICT, ONE, {"Authorization": wrong})[0] == 401
        assert server.ask("GET", "/metrics")[0] == 401
        assert server.ask("POST", PREDICT, ONE, {"Authorization": f"Bearer {KEY}"})[0] == 200
    finally:
        server.end()


def test_a_queue_that_is_full_says_when_to_come_again_and_health_is_not_held_up(written):
    server = Server(written, "--threads", "1", "--queue", "1", "--timeout", "60")
    try:
        server.wait_ready()
        slow = {"signature_name": "slow", "instances": [1.0]}
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(server.ask("POST", PREDICT, slow))) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: "gpt_keras_requests_waiting 1.0" in server.ask("GET", "/metrics")[2])
        status, headers, _ = server.ask("POST", PREDICT, ONE)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert server.ask("GET", "/healthz")[0] == 200
        for thread in threads:
            thread.join()
        assert [answer[0] for answer in answers] == [200, 200]
        assert server.ask("POST", PREDICT, ONE)[0] == 200
    finally:
        server.end()


def test_web_pages_that_may_ask_are_told_so_before_they_send_a_key(written):
    server = Server(written, "--api-key", KEY, "--cors", "https://example.org")
    try:
        server.wait_ready()
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        status, headers, _ = server.ask("OPTIONS", PREDICT, None, asked)
        assert status == 200 and headers["access-control-allow-origin"] == "https://example.org"
        _, headers, _ = server.ask("POST", PREDICT, ONE, {"Origin": "https://example.net"})
        assert "access-control-allow-origin" not in headers
    finally:
        server.end()


def test_an_answer_that_takes_too_long_is_given_up_and_its_thread_still_counts(written):
    server = Server(written, "--timeout", "0.2", "--threads", "1", "--queue", "0")
    try:
        server.wait_ready()
        slow = {"signature_name": "slow", "instances": [3.0]}
        assert server.ask("POST", PREDICT, slow)[0] == 504
        assert server.ask("POST", PREDICT, slow)[0] == 429
        assert server.ask("GET", "/healthz")[0] == 200
        wait_until(lambda: server.ask("POST", PREDICT, ONE)[0] == 200)
    finally:
        server.end()


def test_new_versions_are_picked_up_and_a_killed_server_starts_again(written, base):
    server = Server(base, "--poll-seconds", "0.1")
    try:
        server.wait_ready()
        assert server.ask("POST", PREDICT, ONE)[2] == {"predictions": [2.0]}
        put(written, base, "numbers/2")
        wait_until(lambda: server.ask("POST", PREDICT, ONE)[2] == {"predictions": [3.0]})
        assert server.end(kill=True) == -signal.SIGKILL
        server = Server(base)
        server.wait_ready()
        assert server.ask("POST", PREDICT, ONE)[2] == {"predictions": [3.0]}
        shutil.rmtree(base / "numbers")
        wait_until(lambda: server.ask("POST", PREDICT, ONE)[0] == 404)
    finally:
        server.end()


def test_a_request_that_runs_is_answered_before_the_server_ends(written):
    server = Server(written)
    server.wait_ready()
    answers = []
    slow = {"signature_name": "slow", "instances": [2.0]}
    thread = threading.Thread(target=lambda: answers.append(server.ask("POST", PREDICT, slow)))
    thread.start()
    wait_until(lambda: "gpt_keras_requests_running 1.0" in server.ask("GET", "/metrics")[2])
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0][::2] == (200, {"predictions": [2_000_000.0]})
    assert server.process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; export a model there first"),
        ([".", "--label", "x"], "--label x: expected MODEL:LABEL=VERSION"),
        ([".", "--port", "70000"], "--port must be 0 to 65535, not 70000"),
        ([".", "--threads", "0"], "--threads must be at least 1, not 0"),
        ([".", "--port", "TAKEN"], "cannot listen there (Address already in use)"),
        ([".", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8501: cannot listen there"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [port if argument == "TAKEN" else argument for argument in arguments]
        command = [sys.executable, "-m", "gpt_keras.serve", *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in done.stderr


def test_many_at_once_get_their_own_answers(server):
    failures = []

    def ask(number: int) -> None:
        for i in range(30):
            value = float(100 * number + i)
            found = server.ask("POST", PREDICT, {"instances": [value]})[2]
            if found != {"predictions": [3.0 * value + 1.0]}:
                failures.append((value, found))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and time.monotonic() - started < 60
