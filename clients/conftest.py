"""Servers for the tests: each is started once, and must be idle and well after every test."""

import os
from pathlib import Path

import anthropic
import openai
import pytest
from serving import Server, eventually

BINARY = os.environ["BRUCHTEIL"]
MODELS = Path(os.environ["CLIENTS_MODELS"])
KEY = "sk-of-the-tests-0123456789"
OTHER_KEY = "sk-of-another-client-98765"


def running(model, *flags, key=None):
    server = Server(BINARY, MODELS / model, *flags, key=key)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server():
    """A model of Qwen's kind."""
    yield from running("qwen")


@pytest.fixture(scope="session", params=["deepseek", "llama"])
def other_server(request):
    """The other kinds, one after the other."""
    yield from running(request.param)


@pytest.fixture(scope="session")
def guarded():
    """A server with two keys."""
    yield from running("qwen", "--api-key", OTHER_KEY, key=KEY)


@pytest.fixture(scope="session")
def narrow():
    """A server with little room: two sequences run and four wait."""
    yield from running("qwen", "--parallel", "2", "--max-queue", "4")


@pytest.fixture(autouse=True)
def well(request):
    """After a test nothing runs on its servers, and they answer."""
    names = {"server", "other_server", "guarded", "narrow"} & set(request.fixturenames)
    servers = [request.getfixturevalue(name) for name in sorted(names)]
    yield
    for server in servers:
        eventually(server.is_idle, 10, "no request runs or waits")
        body = {"model": server.model, "prompt": "a", "max_tokens": 1}
        status, _, text = server.post("/v1/completions", body)
        assert status == 200, (status, text)
        assert server.get("/health")[0] == 200


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client
