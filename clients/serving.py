"""A real server as a child process, and plain HTTP to it.

    python clients/serving.py MODEL COMMAND [ARGUMENT ...]

serves a model folder with the binary named by BRUCHTEIL and runs a command with the server's
address in BASE_URL.
"""

import ctypes
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

START_S = 60
STOP_S = 40


def eventually(holds, seconds, what):
    """Waits until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def end_with_parent():
    """However the tests end, no server outlives them (Linux; elsewhere an orderly end is needed)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """`bruchteil serve MODEL` on a free port of the loopback."""

    def __init__(self, binary, model, *flags, key=None):
        """With a `key`, every request carries it that names no other."""
        self.model_dir = model
        self.auth = {"Authorization": f"Bearer {key}"} if key else {}
        self.log = tempfile.NamedTemporaryFile("w+b", prefix="serve-", suffix=".log")
        key_flags = ["--api-key", key] if key else []
        command = [binary, "serve", str(model), "--port", "0", "--json", *key_flags, *flags]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        )  # fmt: skip
        try:
            eventually(self._address, START_S, "the line with the server's address")
            eventually(lambda: self.get("/health")[0] == 200, START_S, "/health gives 200")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _address(self):
        assert self.process.poll() is None, f"the server has ended:\n{self.logged()}"
        found = re.search(r"http://[0-9.]+:[0-9]+", self.logged())
        self.url = found and found[0]
        return self.url

    def logged(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    @property
    def address(self):
        parts = urllib.parse.urlsplit(self.url)
        return parts.hostname, parts.port

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers with small names, and body of one request on its own connection."""
        if not isinstance(body, (bytes, type(None))):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | self.auth | (headers or {})
        headers = {name: value for name, value in headers.items() if value is not None}
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            try:
                connection.request(method, path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent; the answer is there nevertheless
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None, timeout=60):
        return self.request("POST", path, body, headers, timeout)

    def json(self, path, body=None):
        """What a request that must succeed gives."""
        status, _, text = self.get(path) if body is None else self.post(path, body)
        assert status == 200, (path, status, text[:500])
        return json.loads(text)

    @functools.cached_property
    def model(self):
        return self.json("/v1/models")["data"][0]["id"]

    def tokens(self, text):
        return self.json("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def metric(self, name):
        """The sum over labels of a metric, which is named without its prefix."""
        status, _, text = self.get("/metrics")
        assert status == 200, text[:200]
        pattern = rf"^(?:\w+:)?{name}(?:\{{[^}}]*\}})? (\S+)$"
        found = re.findall(pattern, text.decode(), re.MULTILINE)
        assert found, f"/metrics has no {name}"
        return sum(map(float, found))

    def is_idle(self):
        names = ["num_requests_running", "num_requests_waiting"]
        return all(self.metric(name) == 0 for name in names)

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self):
        """As an operator stops it; whatever was amiss in its life shows here."""
        alive = self.process.poll() is None
        if alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no end within {STOP_S} s of SIGTERM:\n{self.logged()}")
        log = self.logged()
        self.log.close()
        assert alive, f"the server ended by itself with {code}:\n{log}"
        assert code in (0, 143), f"exit code {code} after SIGTERM:\n{log}"
        assert "panicked" not in log, log


def main():
    server = Server(os.environ["BRUCHTEIL"], sys.argv[1])
    try:
        environment = os.environ | {"BASE_URL": server.url}
        code = subprocess.run(sys.argv[2:], env=environment).returncode
        eventually(server.is_idle, 30, "nothing runs any more")
    finally:
        server.stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
