"""A server of the real program, with the model that ships."""
import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import time

from program import PROGRAM

SHAKESPEARE = str(pathlib.Path(__file__).resolve().parents[2] / "models/shakespeare")


class Server:
    """Ready to answer; ended by SIGTERM, with a check that it ended well."""

    def __init__(self, case, *arguments, model=SHAKESPEARE, start=(), threads=2, env=None):
        self.log = open(case.folder / f"serve-{id(self)}.log", "w+")
        self.process = subprocess.Popen([*start, PROGRAM, "serve", "--model", model, "--port", "0", "--threads", str(threads), *arguments],
                                        stdout=subprocess.PIPE, stderr=self.log, encoding="utf-8", env=env)
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1]) if "unix:" not in self.url else None
        self.case = case

    def __enter__(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if self.get("/ready")[0] == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError("the server is not ready: " + self.logged())

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        text = self.logged()
        self.log.close()
        if kind is None:
            self.case.assertEqual(code, 0, text)

    def logged(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    def told(self, request_id):
        """What the log tells of a request, which may be a moment behind its answer."""
        for _ in range(200):
            for line in self.logged().splitlines():
                if f'"id":"{request_id}"' in line:
                    return json.loads(line)
            time.sleep(0.02)
        raise AssertionError(f"{request_id} is not in the log")

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None):
        connection = self.connect()
        try:
            connection.request(method, path, body if body is None or isinstance(body, (str, bytes)) else json.dumps(body), headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        status, text, _ = self.request("POST", path, body, headers)
        return status, json.loads(text)

    def done(self, path, body, headers=None):
        status, answer = self.post(path, body, headers)
        self.case.assertEqual(status, 200, answer)
        return answer

    def events(self, path, body, headers=None):
        """The objects of a stream, which must end in [DONE]."""
        status, text, _ = self.request("POST", path, {**body, "stream": True}, headers)
        self.case.assertEqual(status, 200, text)
        lines = [line for line in text.decode().split("\n\n") if line and not line.startswith(":")]
        self.case.assertTrue(all(line.startswith("data: ") for line in lines), text)
        self.case.assertEqual(lines[-1], "data: [DONE]")
        return [json.loads(line[6:]) for line in lines[:-1]]

    def metric(self, name):
        text = self.get("/metrics")[1].decode()
        return sum(float(value) for value in re.findall(rf"^fathom:{name}\{{[^}}]*\}} (\S+)$", text, re.M))

    def raw(self, *pieces, wait=0.0):
        """All that comes back for these bytes until the server closes, or ten seconds have passed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as s:
            with contextlib.suppress(OSError):
                for piece in pieces:
                    s.sendall(piece if isinstance(piece, bytes) else piece.encode())
                    time.sleep(wait)
            received = b""
            with contextlib.suppress(OSError):
                while block := s.recv(65536):
                    received += block
            return received
