"""Whose weights score the student's rollouts.

A scorer turns token ids into hidden states with no gradient, and has a head that turns those into log-probabilities.
Self teachers are made from the student's own loaded weights, never reloaded from a hub.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn
from trl.trainer.utils import create_model_from_path

from trl_opd import sharding
from trl_opd.compat import is_peft_model
from trl_opd.encoding import Prefixes, completion_hidden
from trl_opd.errors import UserError
from trl_opd.tiled import Head

#: Key beside the averaged weights in a checkpoint: the optimizer step of the last update.
UPDATED_AT = "updated_at"


class Scorer:
    """A causal language model that scores under no-grad, in evaluation mode.

    Args:
        model (`nn.Module`): The model, or the student itself where its weights are borrowed.
        temperature (`float`): Divides the logits, as it divides the student's.
        weights (`Callable`, *optional*): Context manager inside which `model` has the scorer's weights.
        live (`bool`): Whether the weights are the student's own and move with every update.
    """

    def __init__(self, model: nn.Module, temperature: float, weights=nullcontext, live: bool = False):
        self.model = model
        self.temperature = temperature
        self.weights = weights
        self.live = live
        self._head: Head | None = None

    @property
    def head(self) -> Head:
        """What this process holds of the head, with the weights that the scorer had when it last read."""
        if self._head is None:
            sharding.release(self.model)
            with self.weights():
                head = Head.of(causal_lm(self.model), self.temperature)
                # Weights that are swapped into a spread student are written over its own, which then come back.
                fleeting = self.live or (self.weights is not nullcontext and sharding.is_spread(self.model))
                self._head = sharding.held(head, fleeting)
        return self._head

    @property
    def max_length(self) -> int | None:
        """Longest input in tokens, where the model states one."""
        return getattr(causal_lm(self.model).config.get_text_config(), "max_position_embeddings", None)

    @property
    def hidden_size(self) -> int:
        return sharding.shape(self.head.weight)[-1]

    @property
    def vocabulary(self) -> int:
        """Rows of the head, padding included."""
        return sharding.shape(self.head.weight)[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def assign(self, rows: list[int], examples: list[dict]) -> list[tuple["Scorer", list[int]]]:
        """Who reads which rows."""
        return [(self, rows)]

    def begin(self) -> None:
        """Called before each rollout batch: a live head is taken anew, so that it fits the hidden states to come."""
        if self.live:
            self._head = None

    def update(self, step: int) -> None:
        """Called once per rollout batch with the number of optimizer steps taken; most scorers stay as they are."""

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """What a checkpoint must hold, whole; empty where the scorer can be made again.

        Every process has to call it, and those that do not write the checkpoint need not keep anything.
        """
        return {}

    def load(self, path: Path) -> None:
        """Takes up what `state` gave, from a safetensors file, which there is if `state` gave anything."""

    @torch.no_grad()
    def read(
        self, input_ids: Tensor, attention_mask: Tensor, completion_length: int, prefixes: Prefixes | None = None
    ) -> Tensor:
        """Hidden states that predict the last `completion_length` tokens, `[B, T, H]`; see `completion_hidden`."""

        def states() -> Tensor:
            return completion_hidden(causal_lm(self.model), input_ids, attention_mask, completion_length, prefixes)

        with self.weights(), evaluation_mode(self.model):
            hidden = sharding.within(self.model, states)
            sharding.release(self.model)
        return hidden

    def place(self, accelerator: Accelerator) -> "Scorer":
        """Moves a model of its own to this process's device, or spreads it; the student's is where it is."""
        if self.weights is nullcontext and not self.live:
            self.model = sharding.placed(self.model, accelerator)
        self._head = None
        return self


class MovingAverage(Scorer):
    """The student with exponentially averaged weights, theta' <- (1 - rate) theta' + rate theta, kept in float32.

    It starts from the student's own weights, is updated once per rollout batch if the student has moved since, and is
    swapped into the student while it scores, so no second model is held. With LoRA what is averaged are the weights
    themselves (B A of each layer, not A and B apart), and the average starts from the student's own adapter. Of a
    spread student each process keeps the average of its shards.

    Args:
        student (`nn.Module`): The student.
        temperature (`float`): See [`Scorer`].
        rate (`float`): The student's share in each update.
        deferred (`bool`): Whether to take the student's weights at the first rollout batch, when it has been spread.
    """

    def __init__(self, student: nn.Module, temperature: float, rate: float, deferred: bool = False):
        _check_averageable(student)
        super().__init__(student, temperature, weights=self._averaged)
        self.rate = rate
        self.updated_at = 0
        self.average: dict[str, Tensor] = {} if deferred else self._copied()
        self._saved: Path | None = None

    @torch.no_grad()
    def _copied(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._current()}

    def begin(self) -> None:
        if not self.average:
            sharding.release(self.model)
            self.average = self._copied()
        if self._saved is not None:
            self._restore(self._saved)

    def _current(self) -> Iterator[tuple[str, Tensor]]:
        """The student's trainable weights of this moment, or its adapters' products, in float32, one by one."""
        if not is_peft_model(self.model):
            for name, p in self.model.named_parameters():
                if p.requires_grad:
                    yield name, p.detach().float()
            return
        for name, layer in _lora_layers(self.model):
            yield name, layer.get_delta_weight(layer.active_adapters[0]).detach().float()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if not is_peft_model(self.model):
            with swapped_in(self.model, self.average):
                yield
            return
        sharding.release(self.model)
        merged = {
            f"{name}.base_layer.weight": (layer.base_layer.weight.detach().float() + self.average[name]).to(
                layer.base_layer.weight.dtype
            )
            for name, layer in _lora_layers(self.model)
        }
        with self.model.disable_adapter(), swapped_in(self.model, merged):
            yield

    @torch.no_grad()
    def update(self, step: int) -> None:
        if step == self.updated_at:
            return
        self.updated_at, self._head = step, None
        sharding.release(self.model)
        for name, value in self._current():
            self.average[name].lerp_(value.to(self.average[name].device), self.rate)

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        state = {}
        for name, value in self.average.items():
            full = sharding.whole(value)
            if keep:
                state[name] = full.cpu()
        return state | {UPDATED_AT: torch.tensor(self.updated_at)} if keep else {}

    def load(self, path: Path) -> None:
        self._saved = path

    def _restore(self, path: Path) -> None:
        with safe_open(path, framework="pt") as saved:
            for name, value in self.average.items():
                value.copy_(sharding.spread_like(saved.get_tensor(name), value))
            self.updated_at, self._head = int(saved.get_tensor(UPDATED_AT)), None
        self._saved = None

    def place(self, accelerator: Accelerator) -> "MovingAverage":
        self.average = {name: value.to(accelerator.device) for name, value in self.average.items()}
        self._head = None
        return self


class ByDomain:
    """Several teachers, chosen for each row by a column of the dataset; they score the sampled tokens only.

    Args:
        teachers (`dict[str, Scorer]`): Domain -> teacher.
        column (`str`): The dataset column that names the domain.
    """

    def __init__(self, teachers: dict[str, Scorer], column: str):
        self.teachers = teachers
        self.column = column

    @property
    def max_length(self) -> int | None:
        lengths = [teacher.max_length for teacher in self.teachers.values() if teacher.max_length is not None]
        return min(lengths, default=None)

    @property
    def vocabulary(self) -> int:
        return min(teacher.vocabulary for teacher in self.teachers.values())

    def assign(self, rows: list[int], examples: list[dict]) -> list[tuple[Scorer, list[int]]]:
        """Who reads which rows."""
        domains = {row: str(examples[row][self.column]) for row in rows}
        unknown = sorted(set(domains.values()) - set(self.teachers))
        if unknown:
            raise UserError(f"No teacher is named for the domain {unknown[0]!r}; add it to teacher_models.")
        return [(teacher, [row for row in rows if domains[row] == domain]) for domain, teacher in self.teachers.items()]

    def begin(self) -> None:
        """Nothing, likewise."""

    def update(self, step: int) -> None:
        """Nothing: external teachers stay as they are."""

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Nothing, likewise."""
        return {}

    def load(self, path: Path) -> None:
        """Nothing, likewise."""

    def place(self, accelerator: Accelerator) -> "ByDomain":
        for teacher in self.teachers.values():
            teacher.place(accelerator)
        return self


def self_teachers(
    student: nn.Module, temperature: float, weights: str, rate: float | None, deferred: bool = False
) -> list[Scorer]:
    """The scorers of a self teacher: one, or start and live student for a trust region; see [`MovingAverage`]."""
    if weights == "ema":
        return [MovingAverage(student, temperature, rate, deferred)]
    live = Scorer(student, temperature, live=True)
    if weights == "live":
        return [live]
    start = frozen_self(student, temperature)
    return [start, live] if weights == "trust-region" else [start]


def _check_averageable(student: nn.Module) -> None:
    """Refuses an adapter whose effect on the weights is more than the products of its LoRA layers."""
    if not is_peft_model(student):
        return
    config = student.active_peft_config
    more = [name for name in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, name, None)]
    packed = any(layer.base_layer.weight.ndim != 2 for _, layer in _lora_layers(student))
    if more or packed or getattr(config, "bias", "none") != "none" or not _lora_layers(student):
        raise UserError(
            "teacher_weights: ema averages the products of LoRA layers over unquantised weights, and this adapter is "
            "something else (DoRA, biases, modules_to_save, a quantised base or another kind); use teacher_weights: "
            "frozen, or plain LoRA."
        )


def _lora_layers(student: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in student.named_modules() if hasattr(module, "get_delta_weight")]


def frozen_self(student: nn.Module, temperature: float) -> Scorer:
    """The student with its weights of this moment, kept for good.

    With a fresh PEFT adapter it is the student with the adapter off, without a second copy of the weights; with a
    trained adapter, a copy of the adapter's tensors is swapped in while scoring; without PEFT, a copy of the model.
    """
    if not is_peft_model(student):
        return Scorer(frozen_copy(student), temperature)
    if adapter_is_identity(student):
        return Scorer(student, temperature, weights=student.disable_adapter)
    kept = {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}
    return Scorer(student, temperature, weights=lambda: swapped_in(student, kept))


def external(model: nn.Module, temperature: float) -> Scorer:
    """Another model, frozen."""
    model.requires_grad_(False)
    return Scorer(model, temperature)


def load_external(name: str, config, dtype: torch.dtype | str) -> nn.Module:
    """Loads an external teacher or reference as the configuration says.

    Args:
        name (`str`): A folder or a model on the hub.
        config: The trainer's configuration.
        dtype (`torch.dtype` or `str`): Precision where the configuration names none, the student's.
    """
    student = {k: v for k, v in (config.model_init_kwargs or {}).items() if k != "revision"}
    settings = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    settings |= config.teacher_model_init_kwargs or student
    # As for the student's reference in TRL: the distributed launcher places the model, not a device map.
    return create_model_from_path(name, **settings | {"device_map": None})


def frozen_copy(model: nn.Module) -> nn.Module:
    """A detached copy of a model's own weights.

    The instance's patched `forward` is left behind: its closure would still run the original's weights.
    """
    duplicate = copy.deepcopy(model)
    vars(duplicate).pop("forward", None)
    return duplicate.requires_grad_(False).eval()


def adapter_is_identity(student: nn.Module) -> bool:
    """Whether the active adapter changes nothing, and trains nothing else: every LoRA B is zero."""
    factors = [p for name, p in student.named_parameters() if "lora_B" in name]
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    return (
        bool(factors) and all("lora_" in name for name in trained) and not any(sharding.whole(p).any() for p in factors)
    )


@contextmanager
def swapped_in(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the named parameters hold other values; outside, their own again. No requires_grad flag is touched."""
    if sharding.is_spread(model):
        with _written_over(model, tensors):
            yield
        return
    parameters = {name: p for name, p in model.named_parameters() if name in tensors}
    own = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = tensors[name].to(device=p.device, dtype=p.dtype)
        yield
    finally:
        for name, p in parameters.items():
            p.data = own[name]


@contextmanager
@torch.no_grad()
def _written_over(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """`swapped_in` for a spread model: FSDP gathers from the memory of its shards, which therefore stays in place."""
    sharding.release(model)
    parameters = {name: p for name, p in model.named_parameters() if name in tensors}
    own = {name: p.to_local().clone() for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.copy_(sharding.spread_like(tensors[name], p))
        yield
    finally:
        sharding.release(model)
        for name, p in parameters.items():
            p.to_local().copy_(own[name])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode (no dropout, no checkpointing); outside, every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def causal_lm(model: nn.Module) -> nn.Module:
    """The model itself, or the one inside its PEFT wrapper (whose layers carry the adapter)."""
    return model.get_base_model() if is_peft_model(model) else model


def check_same_vocabulary(student_tokenizer, teacher_tokenizer, teacher_name: str) -> None:
    """Refuses a teacher that would read the student's token ids as other tokens.

    Vocabularies and special ids are compared, not names.

    Raises:
        `UserError`: With the first difference.
    """
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if student != teacher:
        different = sorted(
            (token for token in student.keys() | teacher.keys() if student.get(token) != teacher.get(token)), key=str
        )
        raise UserError(
            f"The teacher {teacher_name} has another vocabulary than the student ({len(teacher)} against "
            f"{len(student)} tokens, e.g. {different[0]!r} is {teacher.get(different[0])} there and "
            f"{student.get(different[0])} here): it cannot score the student's token ids; choose a teacher of the "
            "same tokenizer."
        )
    if student_tokenizer.eos_token_id != teacher_tokenizer.eos_token_id:
        raise UserError(
            f"The teacher {teacher_name} ends its turns with token {teacher_tokenizer.eos_token!r} and the student "
            f"with {student_tokenizer.eos_token!r}: the student would be taught never to stop; set the same eos_token."
        )
