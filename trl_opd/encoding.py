"""From token ids to the hidden states that predict the completions; prompts that rows share are encoded once.

The G rollouts of a group continue one prompt, and their teacher often reads one context. Such a prompt is encoded
alone, and its keys and values are handed to every row's completion: G (P + T) tokens become P + G T. Positions and
masks are those of the plain forward, so both differ by rounding only, gradients included.
"""

import inspect
import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from trl_opd.sharding import is_spread

#: Least share of a forward's tokens that encoding shared prompts once must save: it runs the layers a second time.
WORTHWHILE = 0.1

#: Attention implementations whose causal mask is right when there are fewer queries than keys and padding on both ends.
ATTENTIONS = ("eager", "sdpa")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prefixes:
    """The distinct prompts of a batch.

    Attributes:
        ids, mask (`torch.Tensor`): The U distinct prompts, left-padded, `[U, P]`.
        owner (`torch.Tensor`): Which of them each row continues, `[B]`.
    """

    ids: Tensor
    mask: Tensor
    owner: Tensor

    @classmethod
    def of(cls, prompt_ids: Tensor, prompt_mask: Tensor) -> "Prefixes":
        """Finds them among left-padded prompts, `[B, P]`."""
        keyed = prompt_ids.masked_fill(prompt_mask == 0, -1)
        distinct, owner = keyed.unique(dim=0, return_inverse=True)
        return cls(ids=distinct.clamp(min=0), mask=(distinct >= 0).to(prompt_mask.dtype), owner=owner)

    @property
    def tokens(self) -> int:
        """Tokens of the distinct prompts, without padding."""
        return int(self.mask.sum())


def find_prefixes(
    model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, completion_length: int, training: bool
) -> Prefixes | None:
    """The prompts to be encoded once; None where that saves too little, or the model does not allow it (logged once).

    Args:
        model (`nn.Module`): The causal language model that will read them.
        prompt_ids, prompt_mask (`torch.Tensor`): Left-padded prompts, `[B, P]`.
        completion_length (`int`): T.
        training (`bool`): Whether the model will read in training mode.
    """
    prefixes = Prefixes.of(prompt_ids, prompt_mask)
    (rows, width), distinct = prompt_ids.shape, len(prefixes.ids)
    if (rows - distinct) * width < WORTHWHILE * rows * (width + completion_length):
        return None
    obstacle = prefix_obstacle(model, training)
    if obstacle is not None:
        _log_once(f"Prompts that rows share are encoded once per row: {obstacle}.")
        return None
    return prefixes


def prefix_obstacle(model: nn.Module, training: bool) -> str | None:
    """Why a model cannot encode a prompt apart from its completions; None where it can."""
    config = model.config.get_text_config()
    if training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing runs layers without a cache"
    if is_spread(model):
        return "sharded parameters need the same number of forwards on every process"
    if config._attn_implementation not in ATTENTIONS:
        return f"its attention is {config._attn_implementation}, not one of {', '.join(ATTENTIONS)}"
    if model._is_stateful or "past_key_values" not in inspect.signature(backbone(model).forward).parameters:
        return f"{type(model).__name__} keeps no keys and values"
    other = {type(layer).__name__ for layer in DynamicCache(config=config).layers} - {DynamicLayer.__name__}
    if other or getattr(config, "num_kv_shared_layers", 0):
        return f"{type(model).__name__} has layers that do not keep the whole prompt"
    return None


@cache
def _log_once(message: str) -> None:
    _logger.warning(message)


def backbone(model: nn.Module) -> nn.Module:
    """A causal language model without its head."""
    return getattr(model, model.base_model_prefix)


def completion_hidden(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_length: int,
    prefixes: Prefixes | None = None,
) -> Tensor:
    """Last hidden states of a causal language model that predict its last tokens, `[B, T, H]`; nothing is projected.

    Args:
        model (`nn.Module`): The model.
        input_ids, attention_mask (`torch.Tensor`): Left-padded prompts and right-padded completions, `[B, P + T]`.
        completion_length (`int`): T.
        prefixes (`Prefixes`, *optional*): The prompts to be encoded once, see `find_prefixes`; None for one forward.
    """
    if prefixes is not None:
        return _after_shared_prefixes(model, input_ids, attention_mask, completion_length, prefixes)
    output = backbone(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.last_hidden_state[:, -completion_length - 1 : -1]


def _after_shared_prefixes(model, input_ids, attention_mask, completion_length: int, prefixes: Prefixes) -> Tensor:
    read, prompts = backbone(model), DynamicCache(config=model.config.get_text_config())
    output = read(input_ids=prefixes.ids, attention_mask=prefixes.mask, past_key_values=prompts, use_cache=True)
    first = output.last_hidden_state[:, -1:].index_select(0, prefixes.owner)
    if completion_length == 1:
        return first
    prompts.layers = [_SharedLayer(layer, prefixes.owner) for layer in prompts.layers]
    # The last token predicts nothing that is scored.
    completion, mask = input_ids[:, -completion_length:-1], attention_mask[:, :-1]
    rest = read(input_ids=completion, attention_mask=mask, past_key_values=prompts, use_cache=True)
    return torch.cat([first, rest.last_hidden_state], 1)


class _SharedLayer(DynamicLayer):
    """A cache layer that holds the distinct prompts, and hands each row its own prompt's keys and values in front.

    Rows are expanded when a layer asks, and nothing is kept of them: at no time are all layers held for all rows.
    """

    def __init__(self, prompts: DynamicLayer, owner: Tensor):
        super().__init__()
        self.lazy_initialization(prompts.keys, prompts.values)
        self.keys, self.values, self.owner = prompts.keys, prompts.values, owner

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self.keys.index_select(0, self.owner), key_states], -2)
        values = torch.cat([self.values.index_select(0, self.owner), value_states], -2)
        return keys, values
