"""One vLLM engine in a process of its own: `python -m trl_opd.evals.vllm_worker SETTINGS`.

It reads requests as JSON lines from its standard input and writes answers as JSON lines to its standard output; what
vLLM prints goes to the error stream. It ends when its input ends, whatever it is doing: its owner has gone.
"""

import json
import os
import queue
import sys
import tempfile
import threading
from typing import Any, TextIO

import torch


def main() -> None:
    """Serve requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM and what it starts print to what they think is the standard output
    try:
        _serve(json.loads(sys.argv[1]), answers)
    except Exception as error:
        _send(answers, error=f"{type(error).__name__}: {error}")
        raise


def _serve(settings: dict[str, Any], answers: TextIO) -> None:
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    engine, adapter = _load(settings)
    _send(answers, ready=True)
    while True:
        wait = not engine.has_unfinished_requests()
        while wait or not requests.empty():
            add(engine, requests.get(), adapter)
            wait = False
        for answer in step(engine):
            _send(answers, **answer)


def add(engine: Any, request: dict[str, Any], adapter: Any = None) -> None:
    """Hand a request to vLLM's engine.

    Args:
        engine (`vllm.LLMEngine`): The engine.
        request (`dict`): Its `id`, the prompt's token `ids`, and the arguments of `SamplingParams`, `sampling`.
        adapter (`vllm.lora.request.LoRARequest`, *optional*): The adapter to apply.
    """
    from vllm import SamplingParams

    engine.add_request(
        request["id"],
        {"prompt_token_ids": request["ids"]},
        SamplingParams(**request["sampling"], detokenize=False),
        lora_request=adapter,
    )


def step(engine: Any) -> list[dict[str, Any]]:
    """Let the engine draw one token of each completion; the `id` and the `tokens` of those that are finished."""
    return [
        {"id": output.request_id, "tokens": list(output.outputs[0].token_ids)}
        for output in engine.step()
        if output.finished
    ]


def _load(settings: dict[str, Any]) -> tuple[Any, Any]:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    adapter = settings.pop("adapter")
    if settings.pop("merge", False):
        # The weights are in memory once the engine is made, and the files in the way.
        with tempfile.TemporaryDirectory(prefix="trl-opd-merged-") as folder:
            _merge(settings["model"], adapter, settings["dtype"], folder)
            return LLM(**settings | {"model": folder}).llm_engine, None
    request = None if adapter is None else LoRARequest("adapter", 1, adapter)
    return LLM(**settings).llm_engine, request


def _merge(model: str, adapter: str, dtype: str, folder: str) -> None:
    """Save the model with the adapter merged, in float32 and rounded once."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.to(dtype=getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def _read(requests: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _send(answers: TextIO, **message: Any) -> None:
    answers.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
