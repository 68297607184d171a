"""The same request gives the same bytes, however the server computes it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import BINARY, MODELS
from serving import Server

WAYS = [
    ["--threads", "1"],
    ["--isa", "portable"],
    ["--parallel", "1"],
    ["--no-prefix-cache"],
    ["--draft-tokens", "0"],
    ["--draft-tokens", "7", "--threads", "2"],
]


def requests(server):
    """Greedy and sampled, alike in their beginnings, repetitive so that guesses are made."""
    end = str(server.tokens("<|im_end|>" if "qwen" in str(server.model_dir) else "a")[0])
    for k in range(10):
        prompt = "Count: one two three four five. " * (1 + k % 4 * 9) + "one two " * k
        body = {"model": server.model, "prompt": prompt, "max_tokens": 40, "seed": k}
        body |= {"temperature": [0, 1, 0.2][k % 3], "logprobs": 3, "logit_bias": {end: -100}}
        yield body | ({"echo": True} if k % 5 == 0 else {})


def answers(server, at_once):
    with ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda body: server.json("/v1/completions", body), requests(server))
    return [json.dumps([answer["choices"], answer["usage"]["total_tokens"]]) for answer in found]


@pytest.mark.parametrize("kind", ["qwen", "deepseek"])
def test_the_same_bytes_every_way(kind):
    plain = None
    for way in [[]] + WAYS:
        server = Server(BINARY, MODELS / kind, *way)
        try:
            for at_once in [1, 10]:
                found = answers(server, at_once)
                plain = plain or found
                different = [k for k, pair in enumerate(zip(plain, found)) if pair[0] != pair[1]]
                assert not different, (kind, way, at_once, different)
        finally:
            server.stop()
