"""A teacher server in this process: a real tiny model behind the part of vLLM's HTTP interface that is used."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class FakeServer:
    """Speaks the JSON of vLLM 0.31, as recorded from one, from a model and a tokenizer of transformers.

    Attributes:
        url: Its address.
        requests: Bodies of the scoring requests so far.
        fails: Set by a test: body of a scoring request -> a status to fail with, or None.
        tamper: Set by a test: changes the prompt log-probabilities of an answer in place.
        pause: Set by a test: seconds before each answer.
        scales: Whether prompt log-probabilities follow the request's temperature, which vLLM's do not.
    """

    def __init__(self, model, tokenizer, max_model_len: int = 512, max_logprobs: int = 200):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_model_len, self.max_logprobs = max_model_len, max_logprobs
        self.requests: list[dict[str, Any]] = []
        self.fails: Callable[[dict], int | None] = lambda body: None
        self.tamper: Callable[[dict, list], None] = lambda body, entries: None
        self.pause = 0.0
        self.scales = False
        self.dead = False
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def kill(self) -> None:
        """Ends it: connections that are open are closed, later ones refused."""
        self.dead = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "teacher", "max_model_len": self.max_model_len}]}
        if path == "/tokenize":
            ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
            return 200, {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids}
        if path == "/v1/completions":
            return self._score(body)
        return 404, {"error": {"message": f"no such path {path}"}}

    def _score(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append(body)
        status = self.fails(body)
        if status is not None:
            return status, {"error": {"message": "told to fail"}}
        if body["prompt_logprobs"] > self.max_logprobs:
            return 400, {"error": {"message": "Requested prompt logprobs are greater than max allowed"}}
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return 400, {"error": {"message": "This model's maximum context length is exceeded"}}
        time.sleep(self.pause)
        entries = [None, *self._entries(body["prompt"], body["prompt_logprobs"], body["temperature"])]
        self.tamper(body, entries)
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": entries}
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}

    @torch.no_grad()
    def _entries(self, ids: list[int], top: int, temperature: float) -> Iterator[dict[str, dict[str, Any]]]:
        with self._lock:
            logits = self.model(torch.tensor([ids])).logits[0, :-1].float()
        logps = (logits / (temperature if self.scales else 1.0)).log_softmax(-1)
        for token, row in zip(ids[1:], logps, strict=True):
            likeliest = row.topk(top).indices.tolist() if top else []
            # As vLLM: the token itself first, with its rank, then the likeliest.
            yield {
                str(v): {"logprob": row[v].item(), "rank": int((row > row[v]).sum()) + 1, "decoded_token": None}
                for v in [token, *likeliest]
            }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                if fake.dead:
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                status, content = fake.answer(self.path, body)
                payload = json.dumps(content).encode()
                with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up waiting
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)

            do_GET = do_POST = _reply

            def log_message(self, *_: Any) -> None:
                """Nothing on the terminal."""

        return Handler


@contextmanager
def serving(model, tokenizer, **options: Any) -> Iterator[FakeServer]:
    """A server that is ended with the block."""
    server = FakeServer(model, tokenizer, **options)
    try:
        yield server
    finally:
        if server._thread.is_alive():
            server.kill()
