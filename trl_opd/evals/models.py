"""Finding a model's folder and hashing what decides its completions. No weights are loaded here."""

import re
from pathlib import Path

from trl_opd.errors import UserError
from trl_opd.evals.records import files_sha256

WEIGHTS = ("*.safetensors", "*.bin")
MODEL_FILES = (*WEIGHTS, "config.json", "generation_config.json")
ADAPTER_FILES = (*WEIGHTS, "adapter_config.json")
TOKENIZER_FILES = (
    "tokenizer*",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name: str) -> Path:
    """The local folder of a model, downloaded first where it is on the Hub.

    Args:
        name (`str`): A folder, `testbed/base`, `testbed/teacher`, or a model id on the Hub.

    Raises:
        UserError: There is no such model, or the folder holds no model.
    """
    folder = Path(name)
    if name.startswith("testbed/"):
        from trl_opd.testbed import model_path  # the one model that comes with the package

        folder = Path(model_path(name.removeprefix("testbed/")))
    elif not folder.exists() and _HUB_ID.fullmatch(name):
        folder = _download(name)
    return _checked(folder, "config.json", "model")


def resolve_adapter(name: str) -> Path:
    """The local folder of a PEFT adapter.

    Raises:
        UserError: The folder does not exist or holds no adapter.
    """
    return _checked(Path(name), "adapter_config.json", "adapter")


def model_sha256(folder: Path) -> str:
    """The hash of the weights, the configuration and the generation configuration."""
    return _matching_sha256(folder, MODEL_FILES)


def adapter_sha256(folder: Path) -> str:
    """The hash of an adapter's weights and configuration."""
    return _matching_sha256(folder, ADAPTER_FILES)


def tokenizer_sha256(folder: Path) -> str:
    """The hash of the tokenizer's files and the chat template."""
    return _matching_sha256(folder, TOKENIZER_FILES)


def _matching_sha256(folder: Path, patterns: tuple[str, ...]) -> str:
    return files_sha256({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _checked(folder: Path, config: str, kind: str) -> Path:
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"The {kind} folder {folder} {fault}: check the path.")
    if kind == "model" and (folder / "adapter_config.json").is_file() and not (folder / config).is_file():
        raise UserError(f"{folder} holds a PEFT adapter: pass --model BASE_MODEL --adapter {folder}.")
    if not (folder / config).is_file() or not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise UserError(f"{folder} holds no {kind}: it needs {config} and weights (*.safetensors or *.bin).")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, *TOKENIZER_FILES, "*.index.json"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is neither a folder nor a model to be had from the Hub: check the name, or connect and log in."
        ) from error
