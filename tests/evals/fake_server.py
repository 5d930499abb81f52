"""An OpenAI-compatible server of the standard library, with a fault for every test."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """Answers a sum from the request's seed. `faults` are statuses that the next completions get instead."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models = ["sums"]
        self.key: str | None = None
        self.faults: list[int] = []
        self.bodies: list[dict] = []
        self.usage = True
        self.reasoning: str | None = None
        self.delay = 0.0
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._answer(401, {"error": "no key"})
        if self.path != "/v1/models":
            return self._answer(404, {"error": "no such page"})
        return self._answer(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            fault = server.faults.pop(0) if server.faults else None
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        time.sleep(server.delay)
        with server.lock:
            server.active -= 1
        if fault:
            return self._answer(fault, {"error": {"message": "the context has 512 tokens."}}, {"Retry-After": "0"})
        message = {"role": "assistant", "content": f"The sum is {body['seed'] % 7}"}
        if server.reasoning is not None:
            message["reasoning_content"] = server.reasoning
        reason = "length" if body["seed"] % 5 == 0 else "stop"
        content = {"choices": [{"message": message, "finish_reason": reason}]}
        if server.usage:
            content["usage"] = {"completion_tokens": 4 + body["seed"] % 3}
        return self._answer(200, content)

    def _answer(self, status: int, content: dict, headers: dict | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Keep the output of the tests clean."""
