"""A small endpoint on this machine that classifies, and that misbehaves on request: states, delays, wrong answers."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


def scores(x: np.ndarray) -> np.ndarray:
    """The model that is served: bright inputs are class 1, dark ones class 0."""
    bright = x.reshape(len(x), -1).mean(1)
    return np.stack([0.5 - bright, bright - 0.5], 1) * 20


class Server:
    """`plan` says how the next requests are treated (then all is well); what was seen and served is counted.

    `served` is the number of rows that were classified, whether or not the answer arrived: what an owner would bill.
    """

    def __init__(self, key: str | None = None, *, echo: bool = True) -> None:
        self.plan: deque[str] = deque()
        self.key, self.echo = key, echo
        self.served, self.seen = 0, 0
        self.names: list[str | None] = []
        self.times: list[float] = []
        self.port = 0
        self.last: bytes = b"[]"
        self.headers: list[dict[str, str]] = []
        self.pause = 0.0
        self.picky = False  # refuses requests with a row whose first value is above 0.9
        self.guard = threading.Lock()

    def url(self, path: str = "/predict") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, handler: "Handler", rows: list[Any]) -> None:
        how = self.plan.popleft() if self.plan else "well"
        word, _, more = how.partition(" ")
        x = np.asarray(rows, dtype=np.float64)
        if self.picky and (x.reshape(len(x), -1)[:, 0] > 0.9).any():
            word = "422"
        if word.isdigit():  # "429 2": the state, and Retry-After
            said = {"Retry-After": more} if more and word in ("429", "503") else {}
            if word == "302":
                said = {"Location": self.url("/elsewhere")}
            body = f"no, {handler.headers.get('Authorization', handler.headers.get('X-Api-Key', ''))}!".encode()
            handler.reply(int(word), body, said)
            return
        with self.guard:
            self.served += len(x)
        time.sleep(self.pause)
        z = scores(x)
        body = json.dumps({"scores": z.tolist()}).encode()
        match word:
            case "slow":
                time.sleep(float(more))
            case "drip":
                handler.drip(body, float(more))
                return
            case "cut":
                handler.reply(200, body[: len(body) // 2], {}, length=len(body))
                return
            case "text":
                body = b"<html>Oops</html>"
            case "nan":
                body = json.dumps({"scores": np.full_like(z, np.nan).tolist()}).encode()
            case "inf":
                body = body.replace(b"[[", b"[[1e999, ", 1)
            case "deep":
                body = b"[" * 100_000
            case "huge":
                body = b"[" + b"0," * 9_000_000 + b"0]"
            case "short":
                body = json.dumps({"scores": z[:-1].tolist()}).encode()
            case "twice":
                body = json.dumps({"scores": z.tolist() * 2}).encode()
            case "ragged":
                body = json.dumps({"scores": [[1.0], *z.tolist()[1:]]}).encode()
            case "stale":  # the answer to another request, told to be that
                handler.reply(200, self.last, {"X-Request-ID": "another"})
                return
            case "other":
                body = json.dumps({"scores": z.tolist(), "id": "another"}).encode()
            case "labels":
                body = json.dumps({"labels": z.argmax(1).tolist()}).encode()
            case "named":
                body = json.dumps({"labels": [("dark", "bright")[i] for i in z.argmax(1)]}).encode()
            case "shuffled":  # in another order, the first row told twice
                order = [0, *np.random.default_rng(0).permutation(len(z)).tolist()]
                body = json.dumps({"scores": z[order].tolist(), "ids": order}).encode()
            case "contradiction":
                order = [0, *range(len(z))]
                body = json.dumps({"scores": [[9.0, 1.0], *z.tolist()], "ids": order}).encode()
        self.last = body
        handler.reply(200, body, {"X-Request-ID": handler.headers["X-Request-ID"]} if self.echo else {})


class Handler(BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for an acknowledgement
    wbufsize = 65536

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        owner = self.owner
        with owner.guard:
            owner.seen += 1
            owner.times.append(time.monotonic())
            owner.names.append(self.headers.get("Idempotency-Key"))
            owner.headers.append(dict(self.headers.items()))
        if owner.key is not None and self.headers.get("Authorization") != f"Bearer {owner.key}":
            self.reply(401, f"the key {self.headers.get('Authorization')} is unknown".encode(), {})
            return
        owner.answer(self, json.loads(data)["inputs"])

    def reply(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            if length is not None:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # who asked has gone
            self.close_connection = True

    def drip(self, body: bytes, pause: float) -> None:
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(key: str | None = None, *, echo: bool = True) -> Iterator[Server]:
    """Serve on a free port of this machine until the block ends."""
    server = Server(key, echo=echo)
    quiet = type("Quiet", (ThreadingHTTPServer,), {"daemon_threads": True, "handle_error": lambda *_: None})
    running = quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"owner": server}))
    server.port = running.server_address[1]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
