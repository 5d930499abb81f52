"""Models whose parameters are spread over the processes: FSDP2 and DeepSpeed ZeRO-3.

Such a model holds its parameters whole only inside its own forward, which every process must enter equally often.
Outside, FSDP2 parameters are DTensors, on which arithmetic is that of each process's shard, and ZeRO-3 parameters are
empty. Here is all that the rest of the package needs to know of it.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from trl_opd.compat import gathered_parameters, prepare_deepspeed, redirect_forward
from trl_opd.tiled import Head


def zero_stage(accelerator: Accelerator) -> int:
    """The ZeRO stage of a DeepSpeed run; 0 for any other."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else plugin.zero_stage


def fsdp_version(accelerator: Accelerator) -> int:
    """The version of FSDP that a run uses; 0 for none."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return 0 if plugin is None else plugin.fsdp_version


def launched_with_fsdp1() -> bool:
    """Whether `accelerate launch` was told to use the first version of FSDP, which is what it takes unless told."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION", "1") == "1"


def spreads_parameters(accelerator: Accelerator) -> bool:
    """Whether models of this run have their parameters spread over the processes."""
    return fsdp_version(accelerator) > 0 or zero_stage(accelerator) == 3


def is_spread(model: nn.Module) -> bool:
    """Whether a model's parameters are spread over the processes."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen model on this process's device, or spread over the processes where the student will be."""
    if fsdp_version(accelerator):
        plugin = accelerator.state.fsdp_plugin
        # Which layers are units depends on the model, and the plugin remembers those of the first that it sees.
        accelerator.state.fsdp_plugin = copy.copy(plugin)
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = None
        try:
            return fsdp2_prepare_model(accelerator, model)
        finally:
            accelerator.state.fsdp_plugin = plugin
    if zero_stage(accelerator) == 3:
        return prepare_deepspeed(model, accelerator).module
    return model.to(accelerator.device)


def within(module: nn.Module, method: Callable, *args: Any) -> Any:
    """Calls `method(*args)` inside the module's own forward, where its parameters are whole.

    Only hidden states may be passed as `args`: mixed precision casts what goes through a spread module's forward.
    """
    return redirect_forward(module, module, method, *args)


def release(model: nn.Module) -> None:
    """Frees parameters that FSDP2 keeps whole after a forward, until the backward pass that may never come."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole(tensor: Tensor | None) -> Tensor | None:
    """A parameter's full value without its graph; every process has to ask for it."""
    if tensor is None:
        return None
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    if hasattr(tensor, "ds_id"):
        with gathered_parameters(tensor):
            return tensor.detach().clone()
    return tensor.detach()


def held(head: Head, fleeting: bool) -> Head:
    """What this process holds of a head, without its graph; a copy where the parameter will soon hold other values.

    A ZeRO-3 parameter is nothing but its own handle, and never fleeting: what would make it so is refused.
    """
    if hasattr(head.weight, "ds_id"):
        return head
    return head.detached().cloned() if fleeting else head.detached()


def whole_head(head: Head) -> Head:
    """The same head with full weights and without its graph; every process has to ask for it."""
    return replace(head, weight=whole(head.weight), bias=whole(head.bias))


def shape(parameter: Tensor) -> torch.Size:
    """The full shape of a parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


def spread_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that every process holds in full, cut into shards as a parameter is."""
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
