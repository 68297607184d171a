"""Connections that are slow, broken or not allowed: the server goes on, and lets nobody in."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import time

import openai
import pytest
from conftest import BINARY, KEY, MODELS, OTHER_KEY
from serving import Server, eventually
from test_hostile_requests import HELLO, no_5xx

# A connection that sends nothing useful is closed within this.
IDLE_S = 40


def chat(server, **fields):
    return {"model": server.model, "messages": HELLO, "max_tokens": 4} | fields


def raw(server, data, timeout=10, hangs_up=True):
    """Everything that comes back for bytes on a connection of their own. A client that closes its
    side may be taken for gone."""
    with socket.create_connection(server.address, timeout) as connection:
        try:
            connection.sendall(data)
            if hangs_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed at once
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except OSError:
            pass
        return found


def status_of(answer):
    """Of the first response; 0 where the connection was closed without one."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def head(server, line, *headers, host=True):
    name, port = server.address
    lines = [line] + ([f"Host: {name}:{port}"] if host else []) + list(headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.fixture(scope="module")
def slow_connections(server):
    """Connections that say nothing, half a head, or half a body, while all else is tested."""
    begun = head(server, "POST /v1/chat/completions HTTP/1.1")[:-2]
    long = begun + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    connections = []
    for data in [b"", b"P", begun, begun + b"X-A: b", long] * 10:
        connections.append(socket.create_connection(server.address))
        connections[-1].sendall(data)
    yield time.monotonic(), connections
    for connection in connections:
        connection.close()


@pytest.fixture(autouse=True)
def among_slow_connections(slow_connections):
    return slow_connections


def test_heads_of_every_wrong_size(server):
    for headers in [["X-Big: " + "a" * (1 << 20)], [f"X-{k}: a" for k in range(10_000)],
                    ["A" * (1 << 20) + ": a"], ["Cookie: " + "a=b; " * 100_000]]:  # fmt: skip
        answer = raw(server, head(server, "GET /health HTTP/1.1", *headers))
        assert status_of(answer) in (0, 400, 413, 431), answer[:200]
    answer = raw(server, head(server, f"GET /{'a' * 100_000} HTTP/1.1"))
    assert status_of(answer) in (0, 400, 404, 414, 431), answer[:200]


def test_heads_that_are_none(server):
    name, port = server.address
    host = f"Host: {name}:{port}\r\n"
    for data in [
        b"\x00" * 1000, b"\r\n" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}{host}\r\n".encode(),
        b"GET /health HTTP/1.1\r\n\r\n", f"GET /\x00 HTTP/1.1\r\n{host}\r\n".encode(),
        f"GET /health HTTP/1.1\r\n{host}A : b\r\n\r\n".encode(),
        f"GET /health HTTP/1.1\r\n{host} folded\r\n\r\n".encode(),
        f"POST /tokenize HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n".encode(),
        f"POST /tokenize HTTP/1.1\r\n{host}Content-Length: 99999999999999999999\r\n\r\n".encode(),
        f"POST /tokenize HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        .encode(),
        f"POST /tokenize HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"
        .encode(),
        f"POST /tokenize HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
        f"CONNECT evil.com:80 HTTP/1.1\r\n{host}\r\n".encode(),
        f"BREW /health HTTP/1.1\r\n{host}\r\n".encode(),
    ]:  # fmt: skip
        assert status_of(raw(server, data)) < 500, data[:80]


def test_no_request_is_smuggled(server):
    hidden = head(server, "GET /v1/models HTTP/1.1")
    for headers in [
        ["Content-Length: 6", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 6"],
        ["Transfer-Encoding: xchunked", "Content-Length: 0"],
        ["Transfer-Encoding: chunked, identity", "Content-Length: 0"],
    ]:
        data = head(server, "POST /tokenize HTTP/1.1", *headers) + b"0\r\n\r\n" + hidden
        answer = raw(server, data)
        # One reading of the two lengths at most, and no answer with the models after an error.
        assert status_of(answer) < 500
        assert answer.count(b'"object":"list"') <= 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "POST"])
def test_methods_and_paths(server, method):
    for path in ["/", "/nothing", "/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions/",
                 "//v1/models", "/V1/models", "/v1/%2e%2e/health", "/../etc/passwd", "/%00",
                 "/v1/models/..%2f..%2fx", "/v1/models/%ff", "/tokenize?x=" + "a" * 2000,
                 "/health", "/metrics", "/openapi.json", "/favicon.ico", "/*"]:  # fmt: skip
        status, _, text = server.request(method, path)
        assert status < 500, (method, path, status)
        assert b"root:" not in text
    answer = raw(server, head(server, "GET http://evil.com/v1/models HTTP/1.1"))
    assert status_of(answer) < 500


@pytest.mark.parametrize("name", ["../../etc/passwd", "%2e%2e/x", "a\x00b", "/etc/passwd", "", "."])
def test_names_of_models_are_no_paths(server, name):
    status, _, text = server.post("/v1/chat/completions", chat(server, model=name))
    assert status in (400, 404) or name == "", (status, text)
    assert status < 500 and b"root:" not in text


def test_hosts_and_origins(server):
    name, port = server.address
    for host in ["evil.com", f"evil.com:{port}", "127.0.0.1.evil.com", "", "a b", "[::1"]:
        status, _, _ = server.request("GET", "/v1/models", headers={"Host": host})
        assert status in (400, 403, 421), (host, status)
    for host in [f"{name}:{port}", f"localhost:{port}"]:
        assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200
    before = server.metric("generation_tokens_total")
    for origin in ["https://evil.com", "null", f"http://{name}:{port}.evil.com"]:
        status, headers, _ = server.post("/v1/chat/completions", chat(server), {"Origin": origin})
        assert status in (403, 421), (origin, status)
        assert "access-control-allow-origin" not in headers
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        _, headers, _ = server.request("OPTIONS", "/v1/chat/completions", headers=asks)
        assert not [name for name in headers if name.startswith("access-control")]
    assert server.metric("generation_tokens_total") == before
    own = {"Origin": f"http://{name}:{port}"}
    assert server.post("/v1/chat/completions", chat(server), own)[0] == 200


def test_nothing_is_fetched(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for link in [url, "file:///etc/passwd", "/etc/passwd", "data:image/png;base64,AAAA"]:
            for part in [{"type": "image_url", "image_url": {"url": link}},
                         {"type": "input_audio", "input_audio": {"data": link, "format": "wav"}},
                         {"type": "file", "file": {"file_id": link}}]:  # fmt: skip
                messages = [{"role": "user", "content": [part]}]
                path = "/v1/chat/completions"
                assert no_5xx(server, path, chat(server, messages=messages)) == 400
        with pytest.raises(TimeoutError):
            listener.accept()


def stream_bytes(server, **fields):
    body = json.dumps(chat(server, stream=True) | {"max_tokens": 2000} | fields).encode()
    headers = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return head(server, "POST /v1/chat/completions HTTP/1.1", *headers) + body


def test_slow_readers_hold_up_nobody(server):
    goes_on = {str(server.tokens("<|im_end|>")[0]): -100}
    # Megabytes for each reader, which is far more than the sockets take.
    wordy = {"n": 6, "max_tokens": 7000, "logprobs": True, "top_logprobs": 20}
    before, slow = server.resident_bytes(), []
    for _ in range(12):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(stream_bytes(server, logit_bias=goes_on, **wordy))
        slow.append(connection)
    for connection in slow:
        connection.recv(1)
    eventually(lambda: server.metric("num_requests_running") == 0, 60, "what nobody reads pauses")
    assert no_5xx(server, "/v1/chat/completions", chat(server), within=20) == 200
    assert server.resident_bytes() - before < 128 << 20
    for connection in slow:
        connection.close()
    eventually(server.is_idle, 5, "the slow readers' slots are free")


def test_a_hundred_disconnects(server):
    seed = 20261122
    print("seed", seed)
    rng = random.Random(seed)
    before = server.open_files()
    free = server.metric("kv_cache_usage_perc")
    for _ in range(100):
        data = stream_bytes(server, n=rng.choice([1, 1, 2]), seed=rng.randrange(1000))
        if rng.random() < 0.3:
            data = data.replace(b'"stream": true', b'"stream": null')
        if rng.random() < 0.2:
            data = data[: rng.randrange(1, len(data))]
        connection = socket.create_connection(server.address)
        connection.sendall(data)
        if rng.random() < 0.5:
            connection.settimeout(0.05 * rng.random() + 0.001)
            try:
                connection.recv(rng.randrange(1, 2000))
            except TimeoutError:
                pass
        if rng.random() < 0.5:
            # A reset rather than an orderly end.
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    eventually(server.is_idle, 10, "every slot is free")
    assert server.metric("kv_cache_usage_perc") <= free + 1e-9
    eventually(lambda: server.open_files() <= before + 2, 10, "every socket is closed")


def test_many_short_requests_leave_nothing(server):
    body = chat(server, temperature=0)

    def ask():
        answer = server.json("/v1/chat/completions", body)
        return answer["choices"][0]["message"]

    first = ask()
    for _ in range(50):
        ask()
    files, memory = server.open_files(), server.resident_bytes()
    for _ in range(300):
        assert ask() == first
    eventually(lambda: server.open_files() <= files + 2, 10, "no file is left open")
    assert server.resident_bytes() - memory < 32 << 20


def test_more_than_the_queue_holds_is_refused_with_429(narrow):
    async def ask(crowd, k):
        try:
            stream = await crowd.completions.create(
                model=narrow.model, prompt="one", max_tokens=400, seed=k, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])
        except openai.RateLimitError as refusal:
            assert int(refusal.response.headers["retry-after"]) >= 0
            assert refusal.body["message"]
            return None

    async def together():
        url = f"{narrow.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as crowd:
            return await asyncio.gather(*(ask(crowd, k) for k in range(30)))

    texts = asyncio.run(together())
    answered = [k for k, text in enumerate(texts) if text is not None]
    assert 6 <= len(answered) < 30
    k = answered[-1]
    alone = {"model": narrow.model, "prompt": "one", "max_tokens": 400, "seed": k}
    assert narrow.json("/v1/completions", alone)["choices"][0]["text"] == texts[k]


def stopped(server, seconds):
    """Sends SIGTERM; the exit code, which must come within so long."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(seconds)


def test_a_short_answer_is_finished_after_sigterm():
    server = Server(BINARY, MODELS / "qwen")
    with socket.create_connection(server.address, 20) as connection:
        goes_on = {str(server.tokens("<|im_end|>")[0]): -100}
        data = stream_bytes(server, logit_bias=goes_on)
        connection.sendall(data)
        found = connection.recv(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        while part := connection.recv(65536):
            found += part
    assert b"data: [DONE]" in found and b'"finish_reason":"length"' in found
    assert server.process.wait(20) in (0, 143)


def test_a_long_answer_is_cut_after_the_drain():
    server = Server(BINARY, MODELS / "qwen", "--drain-timeout", "1")
    with socket.create_connection(server.address, 20) as connection:
        connection.sendall(stream_bytes(server, n=100))
        connection.recv(1)
        begun = time.monotonic()
        assert stopped(server, 15) in (0, 143)
        assert time.monotonic() - begun < 10


PUBLIC = {"/", "/health"}


def is_public(path):
    """The page and its parts, and /health: what needs no key."""
    return path in PUBLIC or path.startswith("/page/")


def test_every_route_wants_the_key(guarded):
    routes = guarded.json("/openapi.json")["paths"]
    assert "/v1/chat/completions" in routes and "/metrics" in routes
    for path, methods in routes.items():
        asked = path.replace("{", "").replace("}", "")
        for method in methods:
            body = {} if method == "post" else None
            status, _, _ = guarded.request(method.upper(), asked, body, {"Authorization": None})
            assert (status == 401) != is_public(path), (method, path, status)
    for path in ["//v1/models", "/V1/models", "/v1/models/", "/v1/%6dodels", "/./v1/models",
                 "/health/../v1/models", "/health/", "/health//v1/models", "/v1/models?a=/health",
                 "/nothing", "/metrics/", "/health%2f..%2fmetrics"]:  # fmt: skip
        status, _, text = guarded.request("GET", path, headers={"Authorization": None})
        assert status in (308, 400, 401, 404), (path, status)
        assert b'"id"' not in text
    line = f"GET http://{guarded.address[0]}/v1/models HTTP/1.1"
    request = head(guarded, line, "Connection: close")
    assert status_of(raw(guarded, request, hangs_up=False)) in (400, 401, 403, 404, 421)


def test_keys_that_are_not_the_key(guarded):
    wrong = ["", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY,
             f"Bearer {KEY.upper()}", f"Bearer {KEY} {KEY}", "Bearer " + "a" * 5000]  # fmt: skip
    for value in wrong:
        status, _, text = guarded.get("/v1/models", {"Authorization": value})
        assert status == 401, (value, status)
        error = json.loads(text)["error"]
        assert error["message"] and KEY not in text.decode()
    for path in [f"/v1/models?api_key={KEY}", f"/v1/models?key={KEY}"]:
        assert guarded.get(path, {"Authorization": None})[0] == 401
    assert guarded.get("/v1/models")[0] == 200
    key = {"Authorization": None, "x-api-key": KEY}
    assert guarded.post("/v1/messages", chat(guarded), key)[0] == 200
    answers = guarded.get("/metrics")[2] + guarded.get("/openapi.json")[2]
    assert KEY not in guarded.logged() and KEY.encode() not in answers


def test_the_cache_is_not_shared_among_keys(guarded):
    def cached(key):
        messages = [{"role": "user", "content": "A secret that is long enough. " * 30}]
        body = chat(guarded, messages=messages)
        _, _, text = guarded.post("/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
        return json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(KEY) == 0 and cached(OTHER_KEY) == 0
    assert cached(KEY) > 0 and cached(OTHER_KEY) > 0


def test_the_client_with_and_without_its_key(guarded):
    url = f"{guarded.url}/v1"
    for key in [KEY, OTHER_KEY]:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.models.list().data
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_other_addresses_than_the_loopback_want_a_key():
    command = [BINARY, "serve", MODELS / "qwen", "--port", "0", "--host", "0.0.0.0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2, (ran.returncode, ran.stderr)
    assert "--api-key" in ran.stderr and "--no-auth" in ran.stderr


def test_only_the_loopback_is_listened_on(server):
    _, port = server.address
    with open("/proc/net/tcp") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    hosts = [place.split(":")[0] for place in listening if place.endswith(f":{port:04X}")]
    assert hosts == ["0100007F"]


def test_a_port_in_use_is_an_error(server):
    _, port = server.address
    command = [BINARY, "serve", MODELS / "qwen", "--port", str(port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode in (1, 2) and str(port) in ran.stderr, (ran.returncode, ran.stderr)
    assert "panicked" not in ran.stderr


def test_the_slow_connections_were_closed(slow_connections):
    """Last in this file, so that little is left to wait for."""
    begun, connections = slow_connections
    for connection in connections:
        connection.settimeout(max(0.1, begun + IDLE_S - time.monotonic()))
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise AssertionError(f"a connection stays open for more than {IDLE_S} s") from None
