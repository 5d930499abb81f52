"""The pipeline: one trainer over TRL's `GRPOTrainer`, for every objective.

TRL does rollouts (transformers and vLLM), rewards, advantages, buffering and logging. When the completions of a rollout
batch are scored, the pipeline builds what the teacher reads, routes every row to its component of the loss, lets the
scorers read the rows that need it, once and without gradient, and keeps the result with the batch. The loss then takes
one student forward per micro-batch. It never asks which objective is running.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import AutoTokenizer
from trl import GRPOTrainer as _GRPOTrainer

from trl_opd import checks, engine_sync, loss_trl, offsite, sharding
from trl_opd.aggregation import COMPOSITION_DEPENDENT, Window, count, token_weights
from trl_opd.batches import Batch, compact, loss_mask, pack, picked, prompt_ids, signal_tensors, trimmed, working_rows
from trl_opd.compat import is_peft_model, redirect_forward, tokenize_prompts
from trl_opd.completions_table import COLUMN, Strips, print_table
from trl_opd.configs import GRPOConfig
from trl_opd.contexts import FunctionContext
from trl_opd.encoding import completion_hidden, find_prefixes, prefix_obstacle
from trl_opd.errors import UserError
from trl_opd.eval_callback import suite_of
from trl_opd.loss import token_loss
from trl_opd.metrics import TokenMeans, signal_shares
from trl_opd.model_card import Carded
from trl_opd.objectives import OBJECTIVES, Objective
from trl_opd.policy import PolicyGradient
from trl_opd.resumable import Resumable
from trl_opd.rollouts import Rollouts, Scores, Sibling, Signals, text_of
from trl_opd.scoring import Oracle, Reading, score
from trl_opd.state import PipelineState
from trl_opd.teacher_cache import load_rollouts
from trl_opd.teacher_prompts import TeacherPrompts
from trl_opd.teacher_states import KEEPERS, compact_states
from trl_opd.teachers import (
    ByDomain,
    Scorer,
    adapter_is_identity,
    causal_lm,
    check_same_vocabulary,
    external,
    frozen_self,
    load_external,
    self_teachers,
)
from trl_opd.tiled import Head

FSDP1 = "FSDP1 is not supported; set fsdp_version: 2, see trainers/accelerate_configs/fsdp2.yaml."


def no_reward(completions: list, **_: Any) -> list[float]:
    """Stands in where an objective needs no reward and none was given; its metrics are not logged."""
    return [0.0] * len(completions)


class OnPolicyTrainer(Carded, Resumable, _GRPOTrainer):
    """
    Trains a student on its own rollouts with any objective of `trl_opd.objectives`.

    It takes the arguments of TRL's `GRPOTrainer`, in their order; `reward_funcs` may be left out where the objective
    needs none. Use the subclass that is named after the method.

    Args:
        teacher_model (`str` or `PreTrainedModel`, *optional*):
            The external teacher, for methods that have one.
        reference_model (`str` or `PreTrainedModel`, *optional*):
            The reference that extrapolation starts from; the student's start if there is none.
        teacher_context (`Callable`, *optional*):
            Your own say on what the teacher reads, see [`~trl_opd.contexts.FunctionContext`].

    Raises:
        `UserError`: Before a model is loaded, for a setting or a dataset that cannot work.
    """

    #: Of a method from outside the package: what it is, and how it is configured.
    objective_class: ClassVar[type[Objective] | None] = None
    config_class: ClassVar[type[GRPOConfig]] = GRPOConfig

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "objective_class" in vars(cls):
            cls.method = cls.objective_class.name

    @classmethod
    def make_objective(cls, config: Any, teacher_context: Callable[..., str | None] | None = None) -> Objective:
        """The objective that a configuration asks for.

        Raises:
            `UserError`: If its settings cannot work.
        """
        objective = (cls.objective_class or OBJECTIVES[cls.method])(config)
        if teacher_context is not None:
            checks.check_context_function(config, objective)
            objective.context = FunctionContext(teacher_context)
        return objective

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        teacher_model=None,
        reference_model=None,
        teacher_context=None,
        **kwargs,
    ):
        if args is None:
            raise UserError(f"args is missing; pass a {type(self).__name__.replace('Trainer', 'Config')}.")
        if sharding.launched_with_fsdp1():  # on a CPU accelerate itself would fail first, and not say why
            raise UserError(FSDP1)
        self.objective = self.make_objective(args, teacher_context)
        checks.check_config(args, self.objective)
        loss_trl.check_kernel(args.loss_kernel, self.objective)
        checks.check_adapter(kwargs.get("peft_config"))
        offsite.check_settings(args, self.objective)
        engine_sync.check_settings(model, args)
        self.replays = offsite.place(args) == "teacher_cache"
        if self.replays:
            train_dataset = load_rollouts(args.teacher_cache) if train_dataset is None else train_dataset
            offsite.check_replay(train_dataset, eval_dataset, kwargs.get("rollout_func"), args)
        checks.check_data(train_dataset, self.objective)
        checks.check_size(train_dataset, args)
        for name, held_out in checks.evaluation_sets(eval_dataset).items():
            checks.check_data(held_out, self.objective, name)
            checks.check_domains(held_out, args)
        checks.check_rewards(reward_funcs, self.objective)
        checks.check_teacher(teacher_model, reference_model, args, self.objective)
        checks.check_domains(train_dataset, args)
        checks.check_vocabularies(model, processing_class, teacher_model, args)
        suite = suite_of(args)
        oracle = offsite.connect(args, self.objective, checks.tokenizer_before_loading(model, processing_class))
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # the loss reaches every trained parameter, also with an adapter
        self.has_rewards = bool(reward_funcs)
        super().__init__(
            model,
            reward_funcs if self.has_rewards else no_reward,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            **kwargs,
        )
        self._check_model(reference_model)
        self._add_callbacks(suite)
        self.policy = PolicyGradient.of(args) if self.objective.uses_policy_gradient else None
        self.aggregation = checks.resolve_aggregation(args)
        self._token_loss = loss_trl.token_loss if args.loss_kernel == "trl" else token_loss
        self.scorers = self._make_scorers(teacher_model, reference_model, oracle)
        if self.scorers:
            self._teacher_prompts = self._make_teacher_prompts()
        # The loss reads hidden states, but for the sampled tokens alone and for a support that a teacher hands over.
        divergence = self.objective.divergence
        self._reads_states = bool(divergence) and not divergence.sampled and (oracle is None or oracle.head is not None)
        if oracle is not None:
            self._prove(oracle)
        if args.use_vllm:
            engine_sync.watch(self)
        self._replayed: list[list[int]] = []
        if self.replays:
            self.rollout_func = self._replay
        self.pipeline_state = PipelineState(method=self.method)
        self._scored: dict[str, Any] = {}
        self._scorer_heads: dict[str, list[Head]] = {"train": [], "eval": []}
        self._token_means = {"train": TokenMeans(), "eval": TokenMeans()}
        self._strips = Strips(self._logs["prompt"].maxlen) if self.log_completions and self.scorers else None

    # What is refused once the model is known

    def _check_model(self, reference_model: Any) -> None:
        if self._is_vlm:
            raise UserError("trl_opd trains text models only; this one takes images.")
        if sharding.fsdp_version(self.accelerator) == 1:
            raise UserError(FSDP1)
        if sharding.zero_stage(self.accelerator) == 3:
            adapter_off = is_peft_model(self.model) and adapter_is_identity(self.model)
            checks.check_zero3(self.args, self.objective, adapter_off, reference_model is not None)
        if self.aux_loss_enabled:
            raise UserError(
                "The router's auxiliary loss of this mixture-of-experts model is not supported; set "
                "router_aux_loss_coef=0.0."
            )
        if is_peft_model(self.model) and self.model.active_peft_config.is_prompt_learning:
            raise UserError("Prompt-learning adapters are not supported; use LoRA or train the whole model.")
        size = getattr(self.objective.divergence, "support_size", None)
        if size is not None and size > self._vocabulary:
            raise UserError(
                f"support_size is {size}, but the vocabulary has {self._vocabulary} tokens; make it smaller, or use "
                "estimator: full."
            )
        if self.objective.context is not None and (self.tools or self.environment_factories is not None):
            raise UserError(
                f"{self.objective.name} rewrites the teacher's prompt and does not support tools or environments."
            )

    def _make_scorers(
        self, teacher_model: Any, reference_model: Any, oracle: Oracle | None
    ) -> list[Scorer | ByDomain | Oracle]:
        if self.objective.teacher == "none":
            return []
        if oracle is not None:
            scorers = [oracle]
        elif self.objective.teacher == "self":
            weights, rate = self.args.teacher_weights, self.args.teacher_update_rate
            deferred = sharding.spreads_parameters(self.accelerator)
            scorers = self_teachers(self.model, self.temperature, weights, rate, deferred)
        else:
            scorers = [self._external_teacher(teacher_model)]
        if self.objective.uses_reference:
            named = self.args.reference_model_name_or_path if reference_model is None else reference_model
            scorers.append(frozen_self(self.model, self.temperature) if named is None else self._external(named))
        return [scorer.place(self.accelerator) for scorer in scorers]

    def _make_teacher_prompts(self) -> TeacherPrompts:
        template, kwargs = self.chat_template, self.args.teacher_chat_template_kwargs
        if getattr(self.args, "use_teacher_template", False):
            template = self._tokenizer_of(self.args.teacher_model_name_or_path).chat_template
        limits = [self.args.max_teacher_length, *(scorer.max_length for scorer in self.scorers)]
        return TeacherPrompts(
            objective=self.objective,
            tokenizer=self._tokenizer,
            template=template,
            template_kwargs=self.chat_template_kwargs if kwargs is None else kwargs,
            tokenize=partial(tokenize_prompts, self),
            limit=min((limit for limit in limits if limit is not None), default=float("inf")),
        )

    def _external_teacher(self, teacher_model: Any) -> Scorer | ByDomain:
        several = getattr(self.args, "teacher_models", None)
        if several:
            return ByDomain({domain: self._external(name) for domain, name in several.items()}, self.args.domain_column)
        return self._external(self.args.teacher_model_name_or_path if teacher_model is None else teacher_model)

    def _prove(self, oracle: Oracle) -> None:
        """Compares a cached or served teacher with the rows, the tokenizer and a copy of it, before the first step."""
        named = None if self.replays else self.args.teacher_model_name_or_path
        local = None if named is None else self._external(named).model.to(self.accelerator.device)
        line = offsite.prove(
            oracle, self._tokenizer, self.train_dataset, self._ids_for_teacher, self._vocabulary, local
        )
        self.accelerator.print(line, flush=True)

    def _ids_for_teacher(self, prompts: list) -> list[list[int]]:
        if self.objective.context is not None:
            return self._teacher_prompts.render(prompts)
        return tokenize_prompts(self, prompts, self.chat_template, self.chat_template_kwargs)

    @property
    def _vocabulary(self) -> int:
        """Rows of the student's head."""
        return sharding.shape(causal_lm(self.model).get_output_embeddings().weight)[0]

    @cached_property
    def _common_vocabulary(self) -> int:
        """Rows that the heads of the student and of all scorers have."""
        sizes = [scorer.vocabulary for scorer in self.scorers]
        return min([self._vocabulary, *(size for size in sizes if size is not None)])

    def _tokenizer_of(self, name: str):
        settings = self.args.teacher_model_init_kwargs or {}
        return AutoTokenizer.from_pretrained(
            name, revision=settings.get("revision"), trust_remote_code=self.args.trust_remote_code
        )

    def _external(self, model: Any) -> Scorer:
        if isinstance(model, str):
            check_same_vocabulary(self._tokenizer, self._tokenizer_of(model), model)
            model = load_external(model, self.args, self.model.dtype)
        return external(model, self.temperature)

    # Rollout batches: contexts, routing, scoring

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        start = self.accelerator.process_index * len(prompts)
        local = gathered[start : start + len(prompts)]
        rewards = (local * self.reward_weights.to(local.device)).nansum(-1)
        rewards[local.isnan().all(-1)] = torch.nan
        feedback = list(self._pending_extra_logs.get("feedback", [None] * len(prompts)))
        if len(feedback) != len(prompts):
            raise UserError(
                f"{len(feedback)} feedback texts were reported for {len(prompts)} completions; let one reward function "
                "report one for each."
            )
        # The output of `_generate_and_score_completions` holds neither rewards nor texts: kept here for `_rollouts`.
        self._scored = {
            "examples": inputs,
            "prompts": prompts,
            "texts": [text_of(completion) for completion in completions],
            "ids": completion_ids_list,
            "rewards": rewards.tolist(),
            "feedback_reported": "feedback" in self._pending_extra_logs,
            "feedback": feedback,
        }
        return gathered

    def _replay(self, prompts: list, trainer: _GRPOTrainer) -> dict[str, list | None]:
        """In place of generation: the stored completions of the rows at hand, in the order of their groups."""
        return {
            "prompt_ids": tokenize_prompts(self, prompts, self.chat_template, self.chat_template_kwargs),
            "completion_ids": self._replayed,
            "logprobs": None,
        }

    def _generate_and_score_completions(self, inputs):
        if self.replays:
            first = self.accelerator.process_index * len(inputs)
            self._replayed = [
                list(row[offsite.COMPLETION_IDS][(first + index) % self.num_generations])
                for index, row in enumerate(inputs)
            ]
        before = offsite.random_state()
        batch = super()._generate_and_score_completions(inputs)
        mode = self._mode
        if not self.has_rewards:
            self._drop_reward_metrics(mode)
        # What was drawn, also of completions that are masked for having been cut; tool output is not drawn.
        drawn = int(loss_mask(batch).sum()) if "tool_mask" in batch else sum(map(len, self._scored["ids"]))
        drawn = 0 if self.replays else drawn
        rollouts = self._rollouts(batch, mode)
        for scorer in self.scorers:
            scorer.begin()
            if mode == "train":
                scorer.update(self.state.global_step)
        teacher_ids = self._prompts_for_teacher(batch, rollouts, mode)
        has_context = torch.tensor([ids is not None for ids in teacher_ids], device=rollouts.mask.device)
        signals = self.objective.route(rollouts, has_context)
        scores = self._score(batch, rollouts, teacher_ids, signals)
        if scores.missing is not None:
            # Completions that are masked for having been cut are not asked about.
            asked = signals.scored_rows() & batch["completion_mask"].bool().any(-1)
            self._count_missing(scores.missing, asked, before, mode)
            # What a teacher does not answer for is routed as what it has nothing to read for.
            signals = self.objective.route(rollouts, has_context & ~scores.missing)
        # An evaluation between two updates of a rollout batch takes a live head anew: each mode has its own.
        self._scorer_heads[mode] = [scorer.head for scorer in self.scorers] if self._reads_states else []
        if self.objective.needs_student_logps:
            rollouts.logps = self._student_logps(batch, rollouts, signals)
        signals = self.objective.weigh(rollouts, signals, scores)
        batch.update(signal_tensors(signals, scores, rollouts.mask))
        if self._recomputes:
            batch["teacher_prompts"] = teacher_ids
        if self._strips is not None:
            batch["number"] = self._strips.number(
                len(rollouts), self.accelerator.num_processes, self.accelerator.process_index
            )
        self._log_shares(mode, signal_shares(signals, rollouts, self.objective.context))
        self._count_cost(drawn, scores, mode)
        return batch

    def _count_missing(self, missing: Tensor, asked: Tensor, before: tuple[Tensor, Tensor | None], mode: str) -> None:
        """Logs the share of rows without an answer; where no process has any, the run stops, its checkpoint saved.

        Raises:
            `UserError`: Saying how to go on.
        """
        local = torch.stack([missing.sum(), asked.sum()]).float()
        unanswered, number = self.accelerator.reduce(local, reduction="sum").tolist()
        self._metrics[mode]["teacher/missing_fraction"].append(unanswered / number if number else 0.0)
        if unanswered == 0 or unanswered < number:
            return
        step, saved = self.state.global_step, "nothing was trained yet"
        if step > 0:
            offsite.restore_random_state(before)  # the resumed run draws this rollout batch again
            self._save_checkpoint(self.model, trial=None)
            saved = f"checkpoint-{step} is saved"
        raise UserError(
            f"{self.scorers[0].name} answered for none of the {number:.0f} rows after step {step} ({saved}); mend it "
            "and give the same command again to go on."
        )

    def _drop_reward_metrics(self, mode: str) -> None:
        metrics = self._metrics[mode]
        for name in [name for name in metrics if name.startswith("reward") or name == "frac_reward_zero_std"]:
            del metrics[name]

    def _rollouts(self, batch: Batch, mode: str) -> Rollouts:
        scored, self._scored = self._scored, {}
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        own = [
            Sibling(text=text, reward=reward, truncated=not ids or ids[-1] not in ends)
            for text, reward, ids in zip(scored["texts"], scored["rewards"], scored["ids"], strict=True)
        ]
        group_size = self.num_generations if mode == "train" else self.num_generations_eval
        first = self.accelerator.process_index * len(own)
        everyone = gather_object(own) if self.objective.needs_groups else []
        groups = [(first + row) // group_size * group_size for row in range(len(own))]
        return Rollouts(
            examples=scored["examples"],
            prompts=scored["prompts"],
            own=own,
            siblings=[everyone[start : start + group_size] for start in groups],
            position=[(first + row) % group_size for row in range(len(own))],
            feedback=scored["feedback"],
            feedback_reported=scored["feedback_reported"],
            mask=loss_mask(batch),
            advantages=batch["advantages"],
            gather=self.accelerator.gather,
            first=first,
            group_size=group_size,
        )

    def _prompts_for_teacher(self, batch: Batch, rollouts: Rollouts, mode: str) -> list[list[int] | None]:
        """Token ids of what the teacher reads before each completion; None where there is nothing that fits."""
        if not self.scorers:
            return [None] * len(rollouts)
        lengths = batch["completion_mask"].sum(-1).tolist()
        ids, shares = self._teacher_prompts.fit(rollouts, prompt_ids(batch), lengths)
        self._log_shares(mode, shares)
        return ids

    def _reading(self, batch: Batch, prompts: list, chosen: Tensor, examples: list[dict]) -> Reading:
        rows = (chosen & (batch["completion_mask"].sum(-1) > 0)).nonzero().squeeze(-1).tolist()
        return Reading(
            completion_ids=batch["completion_ids"],
            completion_mask=batch["completion_mask"],
            prompts=prompts,
            rows=rows,
            examples=examples,
            vocabulary=self._common_vocabulary,
            pad_token_id=self._tokenizer.pad_token_id,
            batch_size=self.args.per_device_train_batch_size,
            share_prompts=self.args.shared_prefix,
            autocast=self.accelerator.autocast,
            most=self._most if sharding.spreads_parameters(self.accelerator) else int,
        )

    def _most(self, count: int) -> int:
        counts = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def _score(self, batch: Batch, rollouts: Rollouts, teacher_ids: list, signals: Signals) -> Scores:
        """Lets every scorer read the rows that carry divergence weight, and no others."""
        if not self.scorers or (self._recomputes and not self.objective.needs_scores):
            return Scores()
        reading = self._reading(batch, teacher_ids, signals.scored_rows(), rollouts.examples)
        return score(self.scorers, reading, KEEPERS[self.args.teacher_states] if self._reads_states else None)

    def _student_logps(self, batch: Batch, rollouts: Rollouts, signals: Signals) -> Tensor:
        """The student's log-probabilities of the rows that feed the likelihood, at rollout time, `[B, T]`."""
        # Never those of the sampling engine (`sampling_per_token_logps`), which rounds in its own way.
        if "old_per_token_logps" in batch:
            return batch["old_per_token_logps"]
        reading = self._reading(batch, prompt_ids(batch), signals.ce != 0, rollouts.examples)
        return score([Scorer(self.model, self.temperature)], reading).logps[0]

    def _scorer_hidden(self, inputs: Batch) -> list[Tensor]:
        """The scorers' hidden states at the tokens of a micro-batch, `[N, H]` each."""
        if not self._reads_states:
            return []
        if self._recomputes:
            distilled = (inputs["kl_weight"] != 0).any(-1)
            reading = self._reading(inputs, inputs["teacher_prompts"], distilled, [{}] * len(distilled))
            scores = score(self.scorers, reading, KEEPERS["keep"])
            self._count_cost(0, scores, self._mode)
            states = scores.states
        else:
            states = [inputs[f"scorer_states_{index}"] for index in range(len(self.scorers))]
        mask = loss_mask(inputs).bool()
        return [
            compact_states(rows, mask, scorer.hidden_size, scorer.dtype)
            for scorer, rows in zip(self.scorers, states, strict=True)
        ]

    @property
    def _recomputes(self) -> bool:
        return self._reads_states and self.args.teacher_states == "recompute"

    def _count_cost(self, drawn: int, scores: Scores, mode: str) -> None:
        if mode != "train":
            return
        local = torch.tensor([drawn, scores.tokens], device=self.accelerator.device)
        generated, taught = self.accelerator.reduce(local, reduction="sum").tolist()
        self.pipeline_state.generated_tokens += generated
        self.pipeline_state.teacher_tokens += taught
        self._metrics[mode]["generated_tokens"] = [self.pipeline_state.generated_tokens]
        self._metrics[mode]["teacher_tokens"] = [self.pipeline_state.teacher_tokens]

    # Micro-batches: denominators and the loss

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            inputs = super()._prepare_inputs(generation_batch)
            self._set_windows([inputs], per_step=1)
            return inputs
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            self._buffered_inputs = None  # used up: its teacher states make room before the next rollouts
        drawn = self._buffered_inputs is None
        inputs = super()._prepare_inputs(generation_batch)
        if not drawn:
            return inputs
        if self.aggregation not in COMPOSITION_DEPENDENT:
            share = self.args.shared_prefix and prefix_obstacle(causal_lm(self.model), training=True) is None
            self._buffered_inputs = pack(self._buffered_inputs, self.args.gradient_accumulation_steps, share)
        self._set_windows(self._buffered_inputs, per_step=self.args.gradient_accumulation_steps)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _set_windows(self, micro_batches: list[Batch], per_step: int) -> None:
        """Tells every micro-batch what its optimizer step spans, over all processes, in one reduction."""
        counts = torch.stack([count(batch["counted"]) for batch in micro_batches])
        windows = counts.view(-1, per_step, 2).sum(1)
        windows = self.accelerator.reduce(windows, reduction="sum")
        for index, batch in enumerate(micro_batches):
            batch["window_tokens"], batch["window_rows"] = windows[index // per_step]

    def _compute_loss(self, model, inputs):
        weights = token_weights(inputs["counted"], self.aggregation, self._window(inputs))
        # Rows without weight in the loss count in its denominator, and are not forwarded; but every process must run a
        # forward, so one of them stands in where there is no other.
        working = working_rows(inputs)
        inputs = trimmed(picked(inputs | {"token_weights": weights}, working or [0]))
        module = self.accelerator.unwrap_model(model)
        # Outside the wrapped forward: a self teacher may swap weights of the same module.
        scorer_hidden = self._scorer_hidden(inputs)
        facts: dict[str, Tensor] = {}
        # Nothing but the loss goes through the wrapper: mixed precision under FSDP rounds inputs and outputs.
        loss = redirect_forward(model, module, lambda: self._loss_in_forward(module, inputs, scorer_hidden, facts))
        exact, distilled = facts.pop("loss"), facts.pop("distilled")
        if self._strips is not None and working:
            mask = loss_mask(inputs).bool()
            self._strips.add(inputs["number"], inputs["completion_ids"], mask, facts, distilled)
        kept = slice(None) if working else slice(0)
        self._log_facts({name: values[kept] for name, values in facts.items()}, distilled[kept])
        return loss + (exact - loss).detach()

    def _loss_in_forward(
        self, module: nn.Module, inputs: Batch, scorer_hidden: list[Tensor], facts: dict[str, Tensor]
    ) -> Tensor:
        """The micro-batch's share of the step's loss; runs inside the wrapped model's forward and fills `facts`."""
        student = causal_lm(module)
        mask = loss_mask(inputs).bool()
        prompt, width, prefixes = (inputs["prompt_ids"], inputs["prompt_mask"]), mask.shape[1], None
        if self.args.shared_prefix:
            prefixes = find_prefixes(student, *prompt, width, training=module.training)

        def in_head(hidden_NH: Tensor) -> Tensor:
            tokens = compact(inputs, mask, inputs["token_weights"], scorer_hidden)
            scorer_heads = [sharding.whole_head(head) for head in self._scorer_heads[self._mode]]
            head = Head.of(student, self.temperature)
            common = self._common_vocabulary
            loss, found = self._token_loss(hidden_NH, head, tokens, self.objective, self.policy, scorer_heads, common)
            facts.update(found, loss=loss.detach(), distilled=tokens.kl != 0)
            return loss

        with self.accelerator.autocast():
            hidden = completion_hidden(
                student,
                torch.cat([prompt[0], inputs["completion_ids"]], 1),
                torch.cat([prompt[1], inputs["completion_mask"]], 1),
                width,
                prefixes,
            )
            return sharding.within(student.get_output_embeddings(), in_head, hidden[mask])

    def _window(self, inputs: Batch) -> Window:
        return Window(
            tokens=inputs["window_tokens"],
            live_rows=inputs["window_rows"],
            micro_batches=self.args.gradient_accumulation_steps if self.model.training else 1,
            processes=self.accelerator.num_processes,
            max_completion_length=self.max_completion_length,
            group_size=self.num_generations if self.model.training else self.num_generations_eval,
        )

    # Metrics: every reduction runs on every process, whatever its rows are

    def _log_facts(self, facts: dict[str, Tensor], distilled: Tensor) -> None:
        mode = self._mode
        self._token_means[mode].add(facts, distilled)
        if mode == "eval" or self.accelerator.sync_gradients:
            for name, mean in self._token_means[mode].take(self.accelerator).items():
                self._metrics[mode][name].append(mean)

    def _log_shares(self, mode: str, shares: dict[str, tuple[float, float]]) -> None:
        table = torch.tensor([list(map(float, pair)) for pair in shares.values()], device=self.accelerator.device)
        totals = self.accelerator.reduce(table, reduction="sum").tolist()
        for name, (part, whole) in zip(shares, totals, strict=True):
            self._metrics[mode][name].append(part / whole if whole else float("nan"))

    def log(self, logs, start_time=None):
        """As in TRL; the table of completions has each token's divergence besides."""
        if self._strips is None:
            super().log(logs, start_time)
            return
        strips = self._strips.gathered()
        self._logs["extra"][COLUMN] = [strip and strip.values for strip in strips]
        most, self.num_completions_to_print = self.num_completions_to_print, 0  # TRL writes its tables and prints none
        super().log(logs, start_time)
        self.num_completions_to_print = most
        if self.accelerator.is_main_process and "train_runtime" not in logs:  # the end's rows were shown already
            step, quantity = self.state.global_step, self._strips.quantity
            shown = self._logs if self.has_rewards else self._logs | {"rewards": {}}
            print_table(shown, strips, self._tokenizer, step=step, quantity=quantity, most=most)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"


class GRPOTrainer(OnPolicyTrainer):
    """TRL's `GRPOTrainer` through the pipeline: the baseline, equal to TRL's step by step."""

    method = "grpo"


class DrGRPOTrainer(OnPolicyTrainer):
    """GRPO without division by the group's deviation and the rollout's length; see [`DrGRPOConfig`]."""

    method = "dr_grpo"


class DAPOTrainer(OnPolicyTrainer):
    """GRPO with DAPO's clip, reduction and overlong filtering; see [`DAPOConfig`]."""

    method = "dapo"


class GRPOEMATrainer(OnPolicyTrainer):
    """GRPO with a KL penalty towards a moving average of the policy; see [`GRPOEMAConfig`]."""

    method = "grpo_ema"


class OPDTrainer(OnPolicyTrainer):
    """On-policy distillation from an external teacher; see [`OPDConfig`]."""

    method = "opd"


class OPSDTrainer(OnPolicyTrainer):
    """On-policy self-distillation from reference solutions; see [`OPSDConfig`]."""

    method = "opsd"


class SDPOTrainer(OnPolicyTrainer):
    """Self-distillation from successful siblings and feedback; see [`SDPOConfig`]."""

    method = "sdpo"


class SRPOTrainer(OnPolicyTrainer):
    """Wrong rollouts are distilled, the others feed GRPO; see [`SRPOConfig`]."""

    method = "srpo"


class ExOPDTrainer(OnPolicyTrainer):
    """On-policy distillation with reward extrapolation; see [`ExOPDConfig`]."""

    method = "exopd"


class SCOPETrainer(OnPolicyTrainer):
    """Likelihood on right rollouts, an external teacher on wrong ones; see [`SCOPEConfig`]."""

    method = "scope"


class MixTrainer(OnPolicyTrainer):
    """Any combination of teacher, context, divergence, routing and weighting; see [`MixConfig`]."""

    method = "mix"
