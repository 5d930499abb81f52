"""How much memory a run takes on one device, from configurations alone: no weight is loaded.

What lasts through a run (parameters, optimizer state, teachers) is counted exactly; what a phase takes on top
(rollouts, scoring, loss and its backward pass, optimizer step) is estimated from shapes. The peak is what lasts plus
the largest phase. Not counted: the framework itself (about 1 GiB on a GPU), communication buffers, fragmentation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from trl_opd.tiled import TILE_BYTES

#: How models, gradients and optimizer state lie on several devices.
STRATEGIES = ("single", "ddp", "fsdp2", "zero2", "zero3")

#: What each strategy spreads over the devices, besides those that keep everything whole.
SPREADS = {
    "single": (),
    "ddp": (),
    "zero2": ("gradients", "optimizer"),
    "fsdp2": ("parameters", "gradients", "optimizer", "teachers"),
    "zero3": ("parameters", "gradients", "optimizer", "teachers"),
}

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What of a causal language model memory depends on.

    Attributes:
        parameters: Number of parameters; tied ones once.
        trainable: Those that are trained.
        adapted: Those of the layers that carry an adapter, which a moving average is taken of; 0 without one.
        head: Parameters of the LM head.
        unit: Parameters of the largest layer, which sharded training gathers at once.
        layers, hidden, intermediate, kv_width: Sizes; `kv_width` is key-value heads x head size.
        bytes_per: Bytes of a parameter.
    """

    parameters: int
    trainable: int
    adapted: int
    head: int
    unit: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    bytes_per: int

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype, peft_config: Any = None) -> "Shape":
        """The shape of a model of that configuration, made without memory; with an adapter if there is one."""
        with no_init_weights(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            model.tie_weights()  # which is left out with the initial values
        parameters = _count(model)
        head = model.get_output_embeddings().weight.numel()
        blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
        trainable, adapted = parameters, 0
        if peft_config is not None:
            from peft import get_peft_model

            adapter = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
            trainable = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
            layers = [module for module in adapter.modules() if hasattr(module, "get_delta_weight")]
            adapted = sum(layer.base_layer.weight.numel() for layer in layers)
            parameters = _count(adapter)
        text = config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            parameters=parameters,
            trainable=trainable,
            adapted=adapted,
            head=head,
            unit=max(map(_count, blocks), default=parameters),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            kv_width=(getattr(text, "num_key_value_heads", None) or heads) * size,
            bytes_per=dtype.itemsize,
        )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Run:
    """What of a run memory depends on.

    Attributes:
        student: Its shape.
        scorers: Models of their own that score: external teachers, references, copies of the student.
        average: Whether a moving average of the student is kept.
        states: How many scorers' hidden states are kept on the device between scoring and loss.
        strategy: One of `STRATEGIES`.
        devices: How many there are.
        rows: Rows of a micro-batch.
        rollouts: Rows of a rollout batch on one device.
        prompt, teacher_prompt, completion: Lengths in tokens.
        checkpointing: Whether activations are recomputed layer by layer.
        compute_bytes: Bytes of a number in activations: 2 under bf16.
        master_copy: Whether the optimizer holds float32 copies of 16-bit parameters (DeepSpeed's bf16).
        vllm_bytes: What an engine on the same device reserves; None where rollouts are the model's own or a server's.
        own_rollouts: Whether the model itself draws the rollouts, and so holds their keys and values.
        device_kind: `cpu` or `cuda`.
    """

    student: Shape
    scorers: list[Shape] = field(default_factory=list)
    average: bool = False
    states: int = 0
    strategy: str = "single"
    devices: int = 1
    rows: int = 1
    rollouts: int = 1
    prompt: int = 512
    teacher_prompt: int = 512
    completion: int = 1024
    checkpointing: bool = True
    compute_bytes: int = 2
    master_copy: bool = False
    vllm_bytes: int | None = None
    own_rollouts: bool = True
    device_kind: str = "cuda"

    def share(self, what: str) -> int:
        """Over how many devices something is spread."""
        return self.devices if what in SPREADS[self.strategy] else 1


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device.

    Attributes:
        lasting: What is held throughout, by name.
        phases: Phase -> what it takes on top, by name.
    """

    lasting: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        """What lasts and the largest phase."""
        return sum(self.lasting.values()) + max(sum(phase.values()) for phase in self.phases.values())

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


def estimate(run: Run) -> Estimate:
    """What a run takes on each device."""
    return Estimate(lasting=dict(_lasting(run)), phases=dict(_phases(run)))


def _lasting(run: Run) -> Iterator[tuple[str, float]]:
    student = run.student
    per_parameter = 2 if run.master_copy else student.bytes_per
    yield "parameters", student.parameters * per_parameter / run.share("parameters")
    # Adam's two moments have the parameters' own format; DeepSpeed keeps them and a master copy in float32.
    states = 12 if run.master_copy else 2 * student.bytes_per
    yield "optimizer", student.trainable * states / run.share("optimizer")
    if run.average:
        yield "moving average", 4 * (student.adapted or student.trainable) / run.share("teachers")
    if run.scorers:
        held = sum(scorer.parameters * scorer.bytes_per for scorer in run.scorers)
        yield "teachers", held / run.share("teachers")
    if run.vllm_bytes:
        yield "vLLM on this device", run.vllm_bytes
    if run.states:
        hidden = max((scorer.hidden for scorer in run.scorers), default=student.hidden)
        yield "teacher states", run.states * run.rollouts * run.completion * hidden * run.compute_bytes


def _phases(run: Run) -> Iterator[tuple[str, dict[str, float]]]:
    student, tile = run.student, TILE_BYTES[run.device_kind]
    gathered = _gathered(run, student)
    length = run.prompt + run.completion
    gradients = student.trainable * (2 if run.master_copy else student.bytes_per) / run.share("gradients")
    if run.own_rollouts:
        cache = run.rollouts * length * student.layers * 2 * student.kv_width * run.compute_bytes
        yield "rollouts", {"keys and values": cache, "gathered weights": gathered}
    if run.states or run.scorers or run.average:
        reader = max(run.scorers, key=lambda scorer: scorer.parameters, default=student)
        tokens = run.rows * (run.teacher_prompt + run.completion)
        yield (
            "scoring",
            {
                "activations": _layer_activations(reader, tokens, run.compute_bytes),
                "tile": tile,
                "gathered weights": _gathered(run, reader),
            },
        )
    tokens = run.rows * length
    kept = student.layers * tokens * student.hidden * run.compute_bytes
    layer = _layer_activations(student, tokens, run.compute_bytes)
    # Trained as a whole, the head has a float32 gradient of its own while the tiles are worked through.
    head_gradient = 4 * student.head if student.trainable == student.parameters else 0
    yield (
        "loss and backward",
        {
            "gradients": gradients,
            "activations": kept + layer if run.checkpointing else student.layers * layer,
            "gradient of the head": head_gradient,
            "tiles": tile * (1 + run.states),
            "gathered weights": gathered + sum(_head(run, scorer) for scorer in run.scorers),
        },
    )
    yield "optimizer step", {"gradients": gradients}


def _layer_activations(shape: Shape, tokens: int, compute_bytes: int) -> float:
    """What one layer keeps for its backward pass: some ten vectors of the hidden size and four of the inner one."""
    return tokens * compute_bytes * (10 * shape.hidden + 4 * shape.intermediate + 4 * shape.kv_width)


def _gathered(run: Run, shape: Shape) -> float:
    """Weights that are whole while a sharded model runs: two layers (one is fetched ahead) and the head."""
    if run.share("parameters") == 1:
        return 0.0
    return (2 * shape.unit * shape.bytes_per) + _head(run, shape)


def _head(run: Run, shape: Shape) -> float:
    return shape.head * shape.bytes_per if run.share("parameters") > 1 else 0.0
