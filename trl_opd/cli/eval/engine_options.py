"""The options that choose an engine and say how it runs the model, shared by all commands that draw completions."""

import argparse

from trl_opd.cli.eval.options import add_option, json_object
from trl_opd.evals.engines import BATCH_SIZES, DTYPES, ENGINES, EngineOptions


def add_engine_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add `--engine` and one option for each field of `EngineOptions` but `adapter`, which belongs to the model."""
    group = parser.add_argument_group("how to run")
    group.add_argument(
        "--engine", choices=ENGINES, default="transformers", help="what draws the completions (default: %(default)s)"
    )
    sizes = ", ".join(f"{name} {size}" for name, size in BATCH_SIZES.items())
    add_option(group, "--batch-size", type=int, metavar="B", help=f"completions drawn at a time (default: {sizes})")
    group.add_argument("--dtype", choices=DTYPES, help="precision (default: float32 on a CPU, bfloat16 on a GPU)")
    add_option(
        group, "--chat-template-kwargs", type=json_object, metavar="JSON", help="e.g. '{\"enable_thinking\": false}'"
    )

    vllm = parser.add_argument_group("with --engine vllm")
    add_option(vllm, "--data-parallel", type=int, metavar="N", help="engines (default: one for each GPU)")
    add_option(vllm, "--tensor-parallel", type=int, metavar="N", help="GPUs of each engine (default: 1)")
    add_option(
        vllm, "--gpu-memory-utilization", type=float, metavar="SHARE", help="of a GPU's memory (default: vLLM's own)"
    )

    server = parser.add_argument_group("with --engine server")
    add_option(server, "--base-url", metavar="URL", help="OpenAI-compatible server, e.g. http://localhost:8000/v1")
    add_option(server, "--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    add_option(
        server,
        "--request-timeout",
        type=float,
        metavar="S",
        help=f"seconds to wait for a completion (default: {EngineOptions.request_timeout:g})",
    )

    lm_eval = parser.add_argument_group("with --engine lm-eval")
    add_backend_options(lm_eval)
    return group


def add_backend_options(group: argparse._ArgumentGroup) -> None:
    """Add what chooses a backend of lm-eval."""
    group.add_argument("--backend", metavar="NAME", help=f"lm-eval's backend (default: {EngineOptions.backend})")
    add_option(group, "--backend-args", type=json_object, metavar="JSON", help="more arguments of the backend")
