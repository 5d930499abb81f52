"""`trl-opd cache METHOD --config recipe.yaml --rollouts FILE --output DIR`: a teacher's scores, made once."""

import argparse
from pathlib import Path
from typing import Any

from trl_opd.cli.parser import Parser
from trl_opd.cli.train import check_recipe, parse, resolve_model, settle_models
from trl_opd.errors import UserError
from trl_opd.methods import load, method
from trl_opd.recipes import with_paths

USAGE = """usage: trl-opd cache METHOD --config RECIPE.yaml --output DIR [--rollouts FILE] [--option value ...]

Let the recipe's teacher score a fixed set of rollouts once, and keep the scores. Training then needs no teacher:

  trl-opd train METHOD --config RECIPE.yaml --teacher_cache DIR --output_dir RUN

A cache that was stopped is taken up when the same command is given again; a finished one is not made again. What is
kept for each token follows from the recipe's estimator: the sampled token (k1, k2, k3), the teacher's likeliest tokens
(topk with support_owner: teacher), or its hidden states (full, and topk with support_owner: student).

methods: those with an external teacher: opd, exopd, scope, mix

what it needs:
  --config RECIPE        model_name_or_path (its tokenizer), teacher_model_name_or_path or teacher_server, temperature
  --output DIR           where the cache goes
  --rollouts FILE        .jsonl, .json, .parquet or .csv with the columns prompt and completion_ids (lists of token
                         ids), completions (lists of texts) or completion (a text); others are kept, e.g. for rewards.
                         Without it the recipe's model draws num_generations completions for each row of its dataset.

All options of 'trl-opd train METHOD' apply; docs/teachers.md says what a cache takes on disk."""


def main(argv: list[str]) -> int:
    """Makes the cache; returns the exit status.

    Raises:
        `UserError`: If an option, a model or the rollouts cannot work.
    """
    if not argv:
        raise UserError("No method was given; use opd, exopd, scope or mix, or --help.")
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    name, options = argv[0], with_paths(argv[1:])
    entry = method(name)
    own = Parser(prog="trl-opd cache", add_help=False)
    own.add_argument("--rollouts", type=Path)
    own.add_argument("--output", type=Path)
    arguments, options = own.parse_known_args(options)
    if arguments.output is None:
        raise UserError("--output is missing; name the folder that the cache goes to.")
    check_recipe(options, name)
    # A cache has no run folder; the configuration wants one all the same.
    data_args, config, model_args = parse(entry.config, [*options, "--output_dir", str(arguments.output)])
    _cache(name, arguments, data_args, config, model_args)
    return 0


def _cache(name: str, arguments: argparse.Namespace, data_args: Any, config: Any, model_args: Any) -> None:
    from transformers import AutoTokenizer

    from trl_opd import checks, offsite
    from trl_opd.objectives import OBJECTIVES
    from trl_opd.teacher_cache import load_rollouts
    from trl_opd.teacher_cache_making import make_cache, pairs_of

    if not model_args.model_name_or_path:
        raise UserError("model_name_or_path is missing; set it to the student, whose tokenizer the rollouts have.")
    if getattr(config, "teacher_cache", None):
        raise UserError(
            "teacher_cache is where training reads a cache; leave it out, and name the new one with --output."
        )
    if data_args.teacher_context:
        raise UserError("A teacher's scores are kept for the prompts as they are; remove teacher_context.")
    found = method(name)
    objective = load(found.trainer).make_objective(config) if found.kind == "on-policy" else None
    if objective is None or objective.teacher != "external":
        known = ", ".join(known for known, kind in OBJECTIVES.items() if kind.teacher == "external")
        raise UserError(f"{name} has no external teacher whose scores could be kept; use {known}, or mix.")
    checks.check_config(config, objective)
    offsite.check_settings(config, objective)
    checks.check_teacher(None, getattr(config, "reference_model_name_or_path", None), config, objective)
    settle_models(config, model_args)
    student = resolve_model(model_args.model_name_or_path)
    checks.check_vocabularies(student, None, None, config)
    tokenizer = AutoTokenizer.from_pretrained(student)
    rollouts = _rollouts(arguments, data_args, config, student, tokenizer)
    teacher_tokenizer = tokenizer
    if config.use_teacher_template:
        teacher_tokenizer = AutoTokenizer.from_pretrained(config.teacher_model_name_or_path)
    pairs = pairs_of(rollouts, tokenizer, teacher_tokenizer.chat_template, config, objective)
    scoring, manifest = _teacher(config, objective, student, tokenizer, pairs)
    made = make_cache(arguments.output, manifest, rollouts, pairs, scoring, lambda line: print(line, flush=True))
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(
        f"{arguments.output}: {len(load_rollouts(arguments.output)):,} rows, {made.completions:,} completions, "
        f"{made.tokens:,} tokens, kind {made.kind}, {size / 2**20:.1f} MiB",
        flush=True,
    )


def _rollouts(arguments: argparse.Namespace, data_args: Any, config: Any, student: str, tokenizer: Any):
    from trl_opd.data import DataArguments, load_training_data
    from trl_opd.rollout_drawing import draw_rollouts
    from trl_opd.teacher_cache_making import with_completion_ids

    if arguments.rollouts is None:
        return draw_rollouts(arguments.output, load_training_data(data_args), config, student, tokenizer)
    return with_completion_ids(load_training_data(DataArguments(dataset_name=str(arguments.rollouts))), tokenizer)


def _teacher(config: Any, objective: Any, student: str, tokenizer: Any, pairs: list) -> tuple[Any, Any]:
    """How to score, and what the cache is to say about itself."""
    from accelerate import Accelerator
    from transformers import AutoConfig

    from trl_opd import offsite
    from trl_opd.evals.models import model_sha256
    from trl_opd.evals.models import resolve_model as model_folder
    from trl_opd.teacher_cache import Manifest, kind_for, rows_sha256, tokenizer_sha256
    from trl_opd.teacher_cache_making import ROWS_PER_SHARD, Scoring
    from trl_opd.teachers import external, load_external

    accelerator = Accelerator(cpu=config.use_cpu, mixed_precision="bf16" if config.bf16 else "no")
    vocabulary = AutoConfig.from_pretrained(student).get_text_config().vocab_size
    kind = kind_for(objective.divergence)
    if config.teacher_server:
        scorer = offsite.connect(config, objective, tokenizer)
        prompts = [prompt for prompt, _ in pairs[: offsite.PROBE_ROWS]]
        print(offsite.prove_server(scorer, prompts, vocabulary, None), flush=True)
        teacher, sha256, dtype = scorer.client.model, scorer.client.model, "server"
    else:
        name = config.teacher_model_name_or_path
        if (config.teacher_model_init_kwargs or {}).get("revision"):
            raise UserError(
                "A cache hashes the teacher's files and cannot take a revision; download it, and name its folder in "
                "teacher_model_name_or_path."
            )
        folder = model_folder(name)
        model = load_external(str(folder), config, dtype="float32")
        scorer = external(model, config.temperature).place(accelerator)
        teacher, sha256, dtype = name, model_sha256(folder), str(model.dtype).removeprefix("torch.")
    scoring = Scoring(
        scorer=scorer,
        batch_size=config.per_device_train_batch_size,
        pad_token_id=tokenizer.pad_token_id,
        share_prompts=config.shared_prefix,
        autocast=accelerator.autocast,
        device=accelerator.device,
    )
    manifest = Manifest(
        teacher=teacher,
        teacher_sha256=sha256,
        dtype=dtype,
        autocast=config.bf16,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        rows_sha256=rows_sha256(pairs),
        temperature=config.temperature,
        kind=kind,
        support_size=objective.divergence.support_size if kind == "topk" else None,
        vocabulary=vocabulary,
        rows_per_shard=ROWS_PER_SHARD[kind],
        completions=len(pairs),
        max_length=scorer.max_length,
        scale=scorer.head.scale if kind == "hidden" else 1.0,
        softcap=scorer.head.softcap if kind == "hidden" else None,
    )
    return scoring, manifest
