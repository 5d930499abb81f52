"""The engine that asks an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or an API."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import requests as http
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from trl_opd.errors import UserError
from trl_opd.evals.engines import BATCH_SIZES, EngineOptions, Generation, Key, Request, Sampling, in_batches

CONNECT_SECONDS = 10.0
#: A try now and then after 1, 2, 4 ... seconds, two minutes in all: a server that is busy or started again comes back.
RETRIES = Retry(
    total=7,
    backoff_factor=1,
    backoff_max=60,
    status_forcelist=(408, 429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)


class ServerEngine:
    """Draws completions by `/chat/completions`, many requests at a time.

    The server renders the conversation; what is recorded as the prompt are the messages, as JSON. It seeds each
    completion if it follows `seed`, which the protocol calls best effort. A reasoning text that the server sends apart
    from the answer is put before it, between <think> tags, as the model wrote it.

    Args:
        model (`str`): The name that the server gives the model.
        options (`EngineOptions`): Address, API key, requests at a time and variables of the chat template.

    Raises:
        UserError: The address or the key is missing, no server answers, or it has no such model.
    """

    def __init__(self, model: str, options: EngineOptions) -> None:
        if options.base_url is None:
            raise UserError("The server engine needs base_url, for instance --base-url http://localhost:8000/v1.")
        self.model = model
        self.options = options
        self.url = _api_root(options.base_url)
        self.batch_size = options.batch_size or BATCH_SIZES["server"]
        self._headers = _headers(options.api_key_env)
        self._check_model()

    def identity(self) -> dict[str, Any]:
        """The settings that decide the completions, as far as they are known: a server does not show its weights."""
        return {"engine": "server", "model": self.model, "chat_template_kwargs": self.options.chat_template_kwargs}

    def details(self) -> dict[str, Any]:
        """The settings that may change between two sessions of one run."""
        return {"base_url": self.url, "batch_size": self.batch_size}

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Request]]:
        """Portions of as many requests as are sent at a time."""
        return in_batches(requests, self.batch_size)

    def generate(
        self, batches: Iterable[list[Request]], sampling: Sampling, done: Set[Key] = frozenset()
    ) -> Iterator[Generation]:
        """The completions that are not done, each as soon as it is there.

        Raises:
            UserError: The server refuses a request, or stays away for two minutes.
        """
        session = http.Session()
        session.headers.update(self._headers)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=2 * self.batch_size, max_retries=RETRIES))
        portions = iter(batches)
        running: set[Future[Generation]] = set()
        pool = ThreadPoolExecutor(self.batch_size)
        try:
            while True:
                while len(running) < self.batch_size and (portion := next(portions, None)) is not None:
                    running |= {
                        pool.submit(self._draw, session, request, sampling)
                        for request in portion
                        if request.key not in done
                    }
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            session.close()

    def _check_model(self) -> None:
        """Find out before anything else whether the server is up and has the model."""
        try:
            answer = http.get(f"{self.url}/models", headers=self._headers, timeout=CONNECT_SECONDS)
        except http.RequestException as error:
            raise UserError(f"No server answers at {self.url} ({_cause(error)}): start it or mend base_url.") from error
        if answer.status_code in (401, 403):
            raise UserError(f"The server at {self.url} wants an API key: name its variable with --api-key-env.")
        try:
            names = [row["id"] for row in answer.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.url}/models is not that of an OpenAI-compatible server (status {answer.status_code}): mend "
                "base_url."
            ) from error
        if self.model not in names:
            raise UserError(f"The server at {self.url} has no model {self.model!r}: it has {', '.join(names)}.")

    def _draw(self, session: http.Session, request: Request, sampling: Sampling) -> Generation:
        try:
            answer = session.post(
                f"{self.url}/chat/completions",
                json=self._body(request, sampling),
                timeout=(CONNECT_SECONDS, self.options.request_timeout),
            )
        except http.RequestException as error:
            raise UserError(
                f"The server at {self.url} no longer answers ({_cause(error)}): start it again and repeat the command, "
                "which goes on from here."
            ) from error
        if answer.status_code != 200:
            raise UserError(
                f"The server at {self.url} refused {request.problem_id} with status {answer.status_code}: "
                f"{_message(answer)}."
            )
        return _generation(request, answer)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed % 2**31,  # some servers take no longer one
        }
        if self.options.chat_template_kwargs:  # known to vLLM and SGLang, refused by others
            body["chat_template_kwargs"] = self.options.chat_template_kwargs
        return body


def _generation(request: Request, answer: http.Response) -> Generation:
    try:
        content = answer.json()
        choice = content["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        return Generation(
            problem_id=request.problem_id,
            index=request.index,
            prompt=json.dumps(request.messages, ensure_ascii=False),
            completion=f"<think>\n{reasoning}\n</think>\n{text}" if reasoning else text,
            tokens=content["usage"]["completion_tokens"],
            finish_reason=choice["finish_reason"],
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"The server's answer to {request.problem_id} is no chat completion with usage: {answer.text[:200]!r}."
        ) from error


def _api_root(address: str) -> str:
    """The address up to and with the version: /v1 is added where no path is given."""
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(f"base_url {address!r} is no address: it begins with http:// or https://.")
    return address if "/" in address.split("://", 1)[1] else f"{address}/v1"


def _headers(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    if not os.environ.get(variable):
        raise UserError(f"The environment variable {variable} is empty: set it to the server's API key.")
    return {"Authorization": f"Bearer {os.environ[variable]}"}


def _cause(error: BaseException) -> str:
    """The innermost reason, without the layers around it."""
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return f"{type(reason).__name__}: {str(reason).rsplit(': ', 1)[-1]}"


def _message(answer: http.Response) -> str:
    """What the server says is wrong."""
    try:
        error = answer.json()
    except ValueError:
        return answer.text[:300].strip() or "no reason given"
    error = error.get("error", error) if isinstance(error, dict) else error
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message).strip().rstrip(".")[:300]
