"""A model behind an HTTP endpoint as a target: every query is counted before it leaves, every answer is checked."""

import email.utils
import hashlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfooled.core.access import Access
from unfooled.core.target import Target
from unfooled.errors import InputError, MissingExtra, TargetError, Unavailable, safe_text
from unfooled.targets._ledger import Ledger

PATIENCE = 300.0
"""Longest wait that a Retry-After may ask for, in seconds."""

MAX_BYTES = 16 * 2**20
"""Largest answer that is read, in bytes."""

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_INPUT = frozenset({400, 413, 414, 415, 422})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SECRETS = ("key", "token", "secret", "password", "passwd", "credential", "signature", "sig", "auth")
_NAMES = ("scores", "logits", "probabilities", "probs", "predictions", "outputs", "output", "labels", "classes")

Encode = Callable[[np.ndarray], Any]
Decode = Callable[[Any], Any]


def http(
    url: str,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    encode: Encode | None = None,
    decode: Decode | None = None,
    classes: int | Sequence[str] | None = None,
    labels: bool = False,
    key_env: str | None = None,
    key_file: str | os.PathLike[str] | None = None,
    header: str = "Authorization",
    prefix: str = "Bearer ",
    budget: int | None = None,
    ledger: str | os.PathLike[str] | None = None,
    batch: int = 16,
    timeout: float = 30.0,
    retries: int = 5,
    rate: float | None = None,
    cache: bool = False,
    name: str = "",
    transport: Any = None,
) -> Target:
    """Return the model behind `url` as a target: batches are POSTed as JSON, scores or class numbers come back.

    What leaves is `encode(x)`, by default {"inputs": [...]} of nested lists; what comes back goes through `decode`, by
    default the list itself or the one list under a usual name (scores, logits, probabilities, predictions, outputs,
    labels). An answer that is larger than 16 MiB, no JSON, not finite, of the wrong number of rows, or that names
    another request (header X-Request-ID or Idempotency-Key, field "id") is thrown away and asked for again. Rows may
    come in any order where the answer says which is which (field "ids": 0 to n-1); a row told twice must be the same.

    Requests carry the same Idempotency-Key each time they are repeated. Repeated are timeouts, broken connections and
    the states 408, 409, 425, 429, 500, 502, 503 and 504, after a random wait that doubles, or after what Retry-After
    asks for. A query counts when it is sent, each time it is sent; those answered by 429 are given back.

    Args:
        url: https, or http on this machine. Redirects are not followed, proxies of the environment are not used.
        bounds: lowest and highest value of an input.
        encode: NumPy batch [b, ...] -> what json.dumps takes.
        decode: parsed JSON -> scores [b, k], a column [b], class numbers [b], or names among `classes` [b].
        classes: how many, or their names.
        labels: the endpoint answers with class numbers alone, from 0 (needs `classes`).
        key_env, key_file: the environment variable or the file that holds the key; it is read for every request, kept
            nowhere, and shown nowhere.
        header, prefix: how the key is sent.
        budget: most queries (rows) that may ever be sent; at its end attacks stop and what was found is kept.
        ledger: the file that counts them, across runs and crashes; without one they count from 0 in every process.
        batch: rows per request.
        timeout: seconds for connecting, for every wait, and for the whole body of an answer.
        retries: how often a request is repeated.
        rate: most requests per second.
        cache: ask once for the same input, and count it once. It hides an endpoint that answers at random.
        name: how reports call it.
        transport: an httpx2 transport instead of the network.

    Raises:
        InputError: the address, the key or a setting does not fit.
        MissingExtra: httpx2 is not installed.
    """
    names = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else None
    count = len(names) if names is not None else classes
    if labels and not isinstance(count, int):
        raise InputError("labels=True needs the number of classes: classes=10, or their names.")
    wire = Wire(
        url,
        encode=encode or _encoded,
        decode=decode or _decoded,
        key=Key(key_env, key_file, header, prefix),
        ledger=(budget, ledger),
        batch=batch,
        timeout=timeout,
        retries=retries,
        rate=rate,
        cache=cache,
        names=names,
        transport=transport,
    )
    module = Endpoint(wire)
    target = Target(
        module, bounds=bounds, name=name or wire.shown, classes=names, access=Access.LABEL if labels else Access.SCORES
    )
    target.labels = int(count) if labels and isinstance(count, int) else 0
    return target


class Endpoint(nn.Module):
    """The module of an HTTP target: x [b, ...] in, float64 scores [b, k] or int64 class numbers [b] out."""

    digest: Tensor

    def __init__(self, wire: "Wire") -> None:
        super().__init__()
        self.wire = wire
        about = hashlib.sha256(wire.url.encode()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(about), dtype=torch.uint8))

    @property
    def counts(self) -> dict[str, int]:
        """Queries: spent (by all runs of the ledger), and those of this process answered, lost, released, cached."""
        return self.wire.counts

    def close(self) -> None:
        """Close the connection and the ledger."""
        self.wire.close()

    def forward(self, x: Tensor) -> Tensor:
        """Return the endpoint's answers; raises Unavailable when the budget is spent or it cannot be reached."""
        return torch.from_numpy(self.wire.ask(x.detach().cpu().numpy()))

    def extra_repr(self) -> str:
        """Return where it is."""
        return self.wire.shown


class Key:
    """Where a key is read from; its value is kept nowhere, so that no repr, record or log can hold it."""

    __slots__ = ("env", "file", "header", "prefix")

    def __init__(self, env: str | None, file: str | os.PathLike[str] | None, header: str, prefix: str) -> None:
        if env is not None and file is not None:
            raise InputError("Give the key by key_env or by key_file, not both.")
        if not header.isascii() or not header.replace("-", "").isalnum():
            raise InputError(f"header {header!r} is no name of an HTTP header.")
        self.env, self.file, self.header, self.prefix = env, file, header, prefix
        self.value()

    def value(self) -> str | None:
        """Return the key, None where none is wanted; raises InputError, without showing it, where it is unusable."""
        if self.env is None and self.file is None:
            return None
        where = f"the variable {self.env}" if self.env is not None else f"the file {os.fspath(self.file or '')}"
        if self.env is not None:
            text = os.environ.get(self.env, "")
        else:
            try:
                text = Path(self.file or "").expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"The key cannot be read from {where} ({type(error).__name__}).") from None
        text = text.strip()
        if not text:
            raise InputError(f"There is no key in {where}: put it there.")
        if not text.isascii() or not text.isprintable() or len(text) > 8192:
            raise InputError(f"The key in {where} holds characters that no HTTP header may have.")
        return text

    def headers(self) -> dict[str, str]:
        """Return the header that carries the key."""
        value = self.value()
        return {} if value is None else {self.header: self.prefix + value}

    def hide(self, text: str) -> str:
        """Return text without the key."""
        value = self.value()
        return text if value is None else text.replace(value, "***")


class _Again(Exception):
    """An attempt that may be repeated: what happened, and how long to wait at least."""

    def __init__(self, said: str, wait: float | None = None, *, billed: bool = True) -> None:
        super().__init__(said)
        self.wait, self.billed = wait, billed


class RefusedInput(Exception):
    """The endpoint refuses these inputs, whoever asks; others may go through."""


class Wire:
    """The connection to one endpoint; it has no `__dict__`, so that nobody puts its counts back (see Ledger)."""

    __slots__ = (
        "_batch",
        "_cache",
        "_client",
        "_decode",
        "_encode",
        "_gap",
        "_guard",
        "_key",
        "_names",
        "_next",
        "_retries",
        "_timeout",
        "cached",
        "ledger",
        "luck",
        "shown",
        "url",
    )

    def __init__(
        self,
        url: str,
        *,
        encode: Encode,
        decode: Decode,
        key: Key,
        ledger: tuple[int | None, str | os.PathLike[str] | None],
        batch: int,
        timeout: float,
        retries: int,
        rate: float | None,
        cache: bool,
        names: Sequence[str] | None,
        transport: Any,
    ) -> None:
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("HTTP targets need httpx2: pip install 'unfooled[http]'.") from None
        try:
            place = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError, ValueError):
            raise InputError("The address of the endpoint is no URL; write https://host/path.") from None
        if place.scheme not in ("http", "https") or not place.host:
            raise InputError("The address of the endpoint must begin with https:// (or http:// on this machine).")
        if place.userinfo:
            raise InputError("The address of the endpoint holds a password; give the key by key_env or key_file.")
        if any(word in name.lower() for name in place.params.keys() for word in _SECRETS):
            raise InputError("The address of the endpoint seems to hold a key; give it by key_env or key_file.")
        if place.scheme == "http" and place.host not in _LOOPBACK:
            raise InputError(f"http://{place.host} would send everything in the open: use https.")
        if batch < 1 or retries < 0 or not timeout > 0 or (rate is not None and not rate > 0):
            raise InputError("batch must be at least 1, retries at least 0, timeout and rate larger than 0.")
        self.url, self.shown = url, f"{place.host}{place.path}"
        self.luck = random.Random()  # its own: the global one belongs to the attacks
        self._encode, self._decode, self._key = encode, decode, key
        self._batch, self._timeout, self._retries = batch, timeout, retries
        self._gap, self._next = 0.0 if rate is None else 1 / rate, 0.0
        self._cache: dict[bytes, Any] | None = {} if cache else None
        self._names = None if names is None else {name: i for i, name in enumerate(names)}
        self.cached, self._guard = 0, threading.RLock()
        self._client = httpx2.Client(
            timeout=timeout, follow_redirects=False, trust_env=False, transport=transport, verify=True
        )
        self.ledger = Ledger(ledger[1], ledger[0], hashlib.sha256(url.encode()).hexdigest())

    def __repr__(self) -> str:
        """Return where it leads."""
        return f"Wire({self.shown!r})"

    def __del__(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()

    @property
    def counts(self) -> dict[str, int]:
        """Queries by what became of them."""
        return {"spent": self.ledger.spent, **self.ledger.calls, "cached": self.cached}

    def close(self) -> None:
        """Close the connection and the ledger."""
        self._client.close()
        self.ledger.close()

    def ask(self, x: np.ndarray) -> np.ndarray:
        """Return the answers to x [n, ...], in its order."""
        with self._guard:
            if self._cache is None:
                return self._asked(x)
            names = [hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest() for row in x]
            new = [i for i, name in enumerate(names) if name not in self._cache and name not in names[:i]]
            if new:
                for i, answer in zip(new, self._asked(x[new]), strict=True):
                    self._cache[names[i]] = answer
            self.cached += len(x) - len(new)
            return np.stack([self._cache[name] for name in names])

    def _asked(self, x: np.ndarray) -> np.ndarray:
        parts = [self._request(x[at : at + self._batch]) for at in range(0, len(x), self._batch)]
        if len({(p.shape[1:], p.dtype.kind) for p in parts}) > 1:
            raise TargetError(f"{self.shown} answers in different shapes: {sorted({p.shape[1:] for p in parts})}.")
        return np.concatenate(parts)

    def _request(self, x: np.ndarray) -> np.ndarray:
        """Return the answer to one request, repeated as often as is allowed."""
        name, body = uuid.uuid4().hex, json.dumps(self._encode(x), allow_nan=False).encode()
        said, waited = "", 0.0
        for attempt in range(self._retries + 1):
            self._pace()
            self.ledger.reserve(len(x), name)
            state = "lost"
            try:
                answer = self._sent(name, body, len(x))
                state = "answered"
                return answer
            except _Again as again:
                state = "lost" if again.billed else "released"
                said, waited = str(again), 0.0 if again.wait is None else again.wait
            except (Unavailable, RefusedInput):
                state = "answered"  # a refusal is an answer, and may have been billed
                raise
            finally:
                self.ledger.close_entry(len(x), name, state)
            if waited > PATIENCE:
                raise Unavailable(f"{self.shown} asks to wait {waited:,.0f} s ({said}); try again later.")
            if attempt < self._retries:
                time.sleep(max(waited, self.luck.uniform(0.5, 1) * min(60.0, 0.25 * 2**attempt)))
        raise Unavailable(
            f"{self.shown} gave no usable answer to {self._retries + 1} requests, the last: {said}; "
            "what was found before is kept."
        )

    def _pace(self) -> None:
        """Wait for the request's turn."""
        if self._gap:
            now = time.monotonic()
            if self._next > now:
                time.sleep(self._next - now)
            self._next = max(now, self._next) + self._gap

    def _sent(self, name: str, body: bytes, rows: int) -> np.ndarray:
        """Send one request and read its answer; raises _Again, RefusedInput or Unavailable."""
        import httpx2

        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Idempotency-Key": name,
            "X-Request-ID": name,
            **self._key.headers(),
        }
        failed: _Again | None = None
        try:  # no exception of the client's goes on from here: its requests hold the key
            with self._client.stream("POST", self.url, content=body, headers=headers) as response:
                status, told = response.status_code, dict(response.headers)
                data = self._read(response)
        except _Again as again:
            failed = _Again(str(again), again.wait)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            failed = _Again("it could not be connected to", billed=False)
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            failed = _Again(f"the connection failed ({type(error).__name__})")
        if failed is not None:
            raise failed from None
        self._judge(status, told, data)
        for field in ("x-request-id", "idempotency-key"):
            if told.get(field, name) != name:
                raise _Again("the answer belongs to another request")
        return self._numbers(data, rows, name)

    def _read(self, response: Any) -> bytes:
        """Return the body, within the limits of size and time."""
        end, data = time.monotonic() + self._timeout, bytearray()
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Again("the answer is compressed, which was not asked for")
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > MAX_BYTES:
                raise _Again(f"the answer is larger than {MAX_BYTES:,} bytes")
            if time.monotonic() > end:
                raise _Again(f"the answer took longer than {self._timeout:g} s")
        return bytes(data)

    def _judge(self, status: int, told: dict[str, str], data: bytes) -> None:
        """Raise what a status calls for; 2xx passes."""
        if 200 <= status < 300:
            return
        text = f"state {status}"
        if status in _AGAIN:
            raise _Again(text, retry_after(told.get("retry-after", "")), billed=status != 429)
        words = safe_text(self._key.hide(data[:2000].decode("utf-8", "replace")))[:200].strip()
        text += f": {words}" if words else ""
        if status in _INPUT:
            raise RefusedInput(f"{self.shown} refuses these inputs ({text})")
        if status in (401, 403):
            raise Unavailable(f"{self.shown} refuses the key, or wants one ({text}).")
        if 300 <= status < 400:
            raise Unavailable(f"{self.shown} leads elsewhere (state {status}), which is not followed: give that URL.")
        raise Unavailable(f"{self.shown} answers {text}.")

    def _numbers(self, data: bytes, rows: int, name: str) -> np.ndarray:
        """Return the checked answer: float64 [rows, k] or [rows], or int64 [rows]."""
        try:
            parsed = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise _Again("the answer is no JSON of finite numbers") from None
        order = None
        if isinstance(parsed, dict):
            if parsed.get("id", name) != name:
                raise _Again("the answer belongs to another request")
            order = parsed.get("ids")
        try:
            decoded = self._decode(parsed)
            z = np.asarray(decoded.detach().cpu() if isinstance(decoded, Tensor) else decoded)
        except Exception as error:  # a decoder of the user's on an answer of anybody's
            raise _Again(f"the answer cannot be decoded ({type(error).__name__})") from None
        if z.dtype.kind == "U" and self._names is not None and z.ndim == 1:
            if unknown := set(z.tolist()) - set(self._names):
                raise _Again(f"the answer names {len(unknown)} classes that are not known")
            z = np.array([self._names[name] for name in z.tolist()], dtype=np.int64)
        if z.dtype.kind not in "fiu" or z.ndim not in (1, 2) or not z.size or not np.isfinite(z).all():
            raise _Again("the answer holds no finite numbers in rows of one length")
        if order is not None:
            z = _ordered(z, order, rows)
        if len(z) != rows:
            raise _Again(f"the answer has {len(z)} rows for {rows} inputs")
        if (z.ndim == 2 and z.shape[1] > 1) or z.dtype.kind == "f":
            return z.astype(np.float64)
        return z.reshape(rows).astype(np.int64)


def _ordered(z: np.ndarray, order: Any, rows: int) -> np.ndarray:
    """Return rows in the order of the request; raises _Again unless `order` names each row, and alike where twice."""
    if not isinstance(order, list) or len(order) != len(z) or not all(type(i) is int and 0 <= i < rows for i in order):
        raise _Again("the answer's ids are not those of the inputs")
    first: dict[int, int] = {}
    for at, i in enumerate(order):
        if not np.array_equal(z[first.setdefault(i, at)], z[at]):
            raise _Again(f"the answer tells row {i} twice, differently")
    if len(first) != rows:
        raise _Again(f"the answer has {len(first)} rows for {rows} inputs")
    return z[[first[i] for i in range(rows)]]


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _encoded(x: np.ndarray) -> Any:
    return {"inputs": x.tolist()}


def _decoded(answer: Any) -> Any:
    if not isinstance(answer, dict):
        return answer
    return next(answer[name] for name in _NAMES if isinstance(answer.get(name), list))


def retry_after(text: str) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds from now; None for none that can be read."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
