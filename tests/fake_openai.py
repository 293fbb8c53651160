"""A small OpenAI-compatible server with vLLM's paths, in a thread of the test: tokens are bytes, answers are scripted.

It can be told to fail, to go away and to come back, and it remembers every call.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

VOCABULARY = 257
END = 256


@dataclass
class Call:
    """What came in."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Failure:
    """What goes wrong with the next calls of completions.

    Attributes:
        status: answered in place of 200; 0 drops the connection, -1 ends the answer early.
        message: inside the error.
        headers: of the answer.
    """

    status: int
    message: str = "broken"
    headers: dict[str, str] = field(default_factory=dict)


class FakeServer:
    """Serves one model.

    Args:
        model: its name.
        answer: text of the prompt, seed -> text; the default depends on both and on the model.
        max_logprobs: most entries a token; -1 is the whole vocabulary.
        context: most tokens of prompt and answer.
        key: API key that calls must carry.
        chat: whether there is a chat template.
    """

    def __init__(
        self,
        model: str = "m",
        answer: Callable[[str, int], str] | None = None,
        *,
        max_logprobs: int = -1,
        context: int = 10_000,
        key: str = "",
        chat: bool = True,
    ) -> None:
        self.model = model
        self.answer = answer or (lambda prompt, seed: f" {model} {len(prompt)} {seed % 97}\nrest")
        self.max_logprobs = max_logprobs
        self.context = context
        self.key = key
        self.chat = chat
        self.root = model
        self.version = "0.11.0"
        self.calls: list[Call] = []
        self.failures: list[Failure] = []
        self.delay_s = 0.0
        self.busiest = 0
        self.running = 0
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None
        self.start(0)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def completions(self) -> list[Call]:
        """The calls that asked for text, in order."""
        return [call for call in self.calls if call.path.endswith("completions")]

    def start(self, port: int | None = None) -> None:
        """Listen, on the old port without an argument."""
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = _Server(("127.0.0.1", self.port if port is None else port), handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._http is not None:
            self._http.shutdown()
            self._http.close_connections()
            self._http.server_close()
            self._http = None

    def handle(self, call: Call) -> tuple[int, Any, dict[str, str]]:
        """Answer one call: status, JSON, headers."""
        with self._lock:
            self.calls.append(call)
            asked = call.path.endswith("completions")
            failure = self.failures.pop(0) if asked and self.failures else None
            self.running += asked
            self.busiest = max(self.busiest, self.running)
        try:
            if asked and self.delay_s:
                time.sleep(self.delay_s)
            if self.key and call.headers.get("Authorization") != f"Bearer {self.key}":
                return 401, _error(f"Incorrect API key: {call.headers.get('Authorization')}"), {}
            if failure is not None and failure.status >= 400:
                return failure.status, _error(failure.message), failure.headers
            status, data = self._route(call)
            if failure is not None and failure.status == -1:
                data["choices"][0]["finish_reason"] = "abort"
            return (0 if failure is not None and failure.status == 0 else status), data, {}
        finally:
            with self._lock:
                self.running -= asked

    def _route(self, call: Call) -> tuple[int, Any]:
        body = call.body
        if call.path == "/v1/models":
            return 200, {"data": [{"id": self.model, "root": self.root, "max_model_len": self.context}]}
        if call.path == "/version":
            return (200, {"version": self.version}) if self.version else (404, {"detail": "Not Found"})
        if body.get("model") not in (None, self.model):
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if call.path == "/detokenize":
            return 200, {"prompt": _text(body["tokens"])}
        if "messages" in body and not self.chat:
            return 400, _error("you must provide a chat template if the tokenizer does not define one.")
        tokens = self._tokens(body)
        if call.path == "/tokenize":
            return 200, {"tokens": tokens, "count": len(tokens)}
        if call.path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"detail": "Not Found"}
        if len(tokens) + 1 > self.context:
            return 400, _error(f"This model's maximum context length is {self.context} tokens.")
        return self._complete(body, tokens)

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            text = "".join(f"<{turn['role']}>{turn['content']}" for turn in body["messages"]) + "<assistant>"
            return list((text + json.dumps(body.get("chat_template_kwargs", ""))).encode())
        prompt = body["prompt"]
        return list(prompt.encode()) if isinstance(prompt, str) else prompt

    def _complete(self, body: dict[str, Any], tokens: list[int]) -> tuple[int, Any]:
        asked, limit = body.get("logprobs"), VOCABULARY if self.max_logprobs < 0 else self.max_logprobs
        asked = VOCABULARY if asked == -1 else asked
        if asked is not None and asked > limit:
            return 400, _error(f"Requested sample logprobs of {asked}, which is greater than max allowed: {limit}")
        data = self.answer(_text(tokens), body.get("seed", 0)).encode()
        cuts = [data.index(stop.encode()) for stop in body.get("stop", []) if stop.encode() in data]
        data = data[: min(cuts)] if cuts else data
        is_short = len(data) < body["max_tokens"]
        data = data[: body["max_tokens"]]
        text = data.decode(errors="ignore")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if is_short else "length"}
        choice |= {"message": {"content": text}} if "messages" in body else {"text": text, "logprobs": None}
        if asked:
            row = self._row(tokens)
            kept = np.argsort(-row, kind="stable")[:asked]
            named = "token_id:{}" if body.get("return_tokens_as_token_ids") else "text {}"
            choice["logprobs"] = {"top_logprobs": [{named.format(i): float(row[i]) for i in kept}]}
        return 200, {
            "choices": [choice],
            "usage": {"prompt_tokens": len(tokens), "completion_tokens": len(data) + is_short},
        }

    def _row(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Log-probabilities of the next token: any distribution that depends on the model and on all tokens."""
        seed = hashlib.sha256(json.dumps([self.model, tokens]).encode()).digest()
        logits = np.random.default_rng(int.from_bytes(seed[:8], "big")).normal(size=VOCABULARY)
        return logits - np.log(np.exp(logits).sum())


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can end them as a killed process does."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self.open: list[Any] = []
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""

    def close_connections(self) -> None:
        for connection in self.open:
            self.shutdown_request(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""

    def _answer(self, body: dict[str, Any]) -> None:
        status, data, headers = self.fake.handle(Call(self.path, body, dict(self.headers)))
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)


def _text(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < END).decode(errors="replace")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


Serve = Callable[..., FakeServer]
