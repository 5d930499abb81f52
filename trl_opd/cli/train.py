"""`trl-opd train METHOD --config recipe.yaml --key value ...`: TRL's parser and YAML habits for every method."""

import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl_opd.cli.parser import told
from trl_opd.defaults import changed, default_of, trl_base
from trl_opd.errors import UserError
from trl_opd.evals.files import read_yaml
from trl_opd.methods import METHODS, load, method
from trl_opd.recipes import recipes, with_paths
from trl_opd.suggest import suggest

#: An option that switches a group on -> the options that act only with it.
GROUPS = {
    "use_vllm": ("vllm_",),
    "use_peft": ("lora_",),
    "eval_suite": ("eval_suite_",),
    "load_in_4bit": ("bnb_4bit_", "use_bnb_nested_quant"),
}

USAGE = """usage: trl-opd train METHOD --config RECIPE.yaml [--option value ...]

Train a model with one of the methods. A recipe is a YAML file of options, or the name of one that ships with the
package ('trl-opd recipes list'); options on the command line win. A run that was killed goes on from its last
checkpoint when the same command is given again; a finished one is not repeated.

methods:
{methods}

what every run needs:
  --model_name_or_path   testbed/base, a folder, or a model on the hub
  --dataset_name         testbed, a .jsonl/.json/.parquet/.csv file, or a dataset on the hub
  --output_dir           where run.json, log.jsonl, checkpoints and model/ go

'trl-opd train METHOD --help' lists the method's own options; all options of TRL's GRPOConfig (SFTConfig for sft and
rft) and ModelConfig apply too.
Several processes: accelerate launch trainers/METHOD.py --config RECIPE.yaml"""


def main(argv: list[str]) -> int:
    """Trains; returns the exit status."""
    if not argv:
        raise UserError(f"No method was given; use one of {', '.join(METHODS)}, or --help.")
    if argv[0] in ("-h", "--help"):
        print(USAGE.format(methods="\n".join(f"  {name:<10}{entry.summary}" for name, entry in METHODS.items())))
        return 0
    name, options = argv[0], with_paths(argv[1:])
    entry = method(name)
    if {"-h", "--help"} & set(options):
        print(_method_help(name))
        return 0
    if not options:
        raise UserError(
            f"There is nothing to train {name} on; name a recipe with --config (trl-opd recipes list shows some), or "
            "--model_name_or_path, --dataset_name and --output_dir."
        )
    check_recipe(options, name)
    data_args, config, model_args = parse(entry.config, options)
    check_ignored(named_options(options), data_args, config, model_args)
    return _train(name, data_args, config, model_args)


def _dataclasses(config_name: str) -> tuple[type, ...]:
    from trl import ModelConfig

    from trl_opd.data import DataArguments

    return DataArguments, load(config_name), ModelConfig


def _method_help(name: str) -> str:
    entry = method(name)
    data, config, _ = _dataclasses(entry.config)
    base = trl_base(config)
    inherited = {f.name: f.default for f in fields(base)}
    own = [f for f in fields(config) if f.name not in inherited or f.default != inherited[f.name]]
    lines = [f"usage: trl-opd train {name} --config RECIPE.yaml [--option value ...]", "", f"{name}: {entry.summary}"]
    for title, group in (
        ("data", fields(data)),
        (f"{name}: new, or with another default than in TRL's {base.__name__}", own),
    ):
        lines += ["", f"{title}:"]
        for f in group:
            default = default_of(f)
            shown = "the built-in text" if isinstance(default, str) and "\n" in default else default
            lines += [f"  --{f.name} (default: {shown})", f"      {f.metadata.get('help', '')}"]
    return "\n".join(lines)


def check_recipe(options: list[str], name: str) -> None:
    """Refuses a recipe that is missing, is no mapping or holds unknown keys, before anything is imported.

    Raises:
        `UserError`: With the nearest known key.
    """
    if "--config" not in options:
        return
    position = options.index("--config") + 1
    if position == len(options):
        raise UserError("--config is followed by nothing; name a YAML file.")
    path = Path(options[position])
    if not path.is_file():
        near = suggest(options[position], [recipe.name for recipe in recipes()])
        raise UserError(f"There is no recipe {path}{near}; check the path after --config, or see trl-opd recipes list.")
    recipe = read_yaml(path)
    known = {f.name for kind in _dataclasses(method(name).config) for f in fields(kind)} | {"env"}
    for key in recipe:
        if key not in known:
            raise UserError(
                f"{path} sets {key!r}, which is no option of {name}{suggest(key, known)}; remove or mend it."
            )


def named_options(options: list[str]) -> frozenset[str]:
    """The options that a command line and its recipe, which has been checked, name."""
    recipe = {}
    if "--config" in options:
        recipe = read_yaml(Path(options[options.index("--config") + 1]))
    return frozenset([*recipe, *map(_name, _flags(options))]) - {"config", "env"}


def _flags(options: list[str]) -> list[str]:
    return [option.split("=")[0] for option in options if option.startswith("--")]


def _name(flag: str) -> str:
    """The field that a flag, in either spelling, is for."""
    return flag.removeprefix("--").replace("-", "_")


def check_flags(options: list[str], config_name: str, also: Iterable[str] = ()) -> None:
    """Refuses flags that no option has; they may not be cut short either.

    Args:
        options (`list[str]`): The command line.
        config_name (`str`): The configuration.
        also (`Iterable`): Flags that the command takes besides.

    Raises:
        `UserError`: With the nearest known one.
    """
    fields_ = [f for kind in _dataclasses(config_name) for f in fields(kind)]
    known = {"--config", *also, *(f"--{f.name}" for f in fields_), *(f"--no_{f.name}" for f in fields_)}
    for flag in _flags(options):
        if f"--{_name(flag)}" not in known and flag not in known:
            raise UserError(f"There is no option {flag}{suggest(flag, known)}; see --help.")


def check_ignored(named: frozenset[str], data: Any, config: Any, model: Any) -> None:
    """Refuses options of a group that is switched off: they would be ignored.

    Raises:
        `UserError`: Naming the first of them and the switch.
    """
    values = {name: value for record in (data, config, model) for name, value in vars(record).items()}
    set_by_user = named & set().union(*map(changed, (data, config, model)))
    for switch, prefixes in GROUPS.items():
        ignored = sorted(name for name in set_by_user if name.startswith(prefixes))
        if ignored and not values.get(switch):
            raise UserError(
                f"{ignored[0]}={values[ignored[0]]!r} acts with {switch} only and would be ignored without it; remove "
                f"it, or set {switch}."
            )


def parse(config_name: str, options: list[str]) -> tuple[Any, Any, Any]:
    """The data arguments, the configuration of that name and the model arguments, from options and their recipe.

    Raises:
        `UserError`: If an option is unknown or its value cannot work.
    """
    from trl import TrlParser

    kinds = _dataclasses(config_name)
    check_flags(options, config_name)
    # TRL's default sets an option that transformers has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    parser = TrlParser(kinds, allow_abbrev=False)
    parser.error = _refuse  # in place of two hundred lines of usage
    try:
        *parsed, unknown = parser.parse_args_and_config(options, return_remaining_strings=True)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(_one_sentence(error)) from error
    if unknown:
        raise UserError(f"{unknown[0]!r} is one argument too many; see --help.")
    return tuple(parsed)


def _refuse(message: str) -> None:
    raise UserError(f"{told(message)}; see --help.")


def _one_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if ("bf16" in text and "use_cpu" in text) or "bf16/gpu" in text:
        return "This machine has no accelerator that trains in bfloat16; add --use_cpu true --bf16 false."
    return text


def _train(name: str, data_args, config, model_args) -> int:
    from trl_opd.run_log import RunFolder, differences

    if not model_args.model_name_or_path:
        raise UserError("model_name_or_path is missing; set it to testbed/base, a folder, or a model on the hub.")
    with RunFolder(Path(config.output_dir), name, differences(data_args, config, model_args)) as folder:
        if folder.finished:
            print(f"{folder.path} is finished: {folder.record['steps']} steps, {folder.record['seconds']:.0f} s.")
            return 0
        try:
            _run(name, folder, data_args, config, model_args)
        except BaseException as error:
            last_line = (str(error).strip().splitlines() or [""])[-1]
            folder.write(status="failed", error=f"{type(error).__name__}: {last_line}")
            raise
    return 0


def _run(name: str, folder, data_args, config, model_args) -> None:
    from trl_opd.cli.check.brief import brief
    from trl_opd.compat import end_engine
    from trl_opd.state import newest_checkpoint, resumable

    dataset = _training_data(data_args, config)

    entry = method(name)
    trainer = make_trainer(load(entry.trainer), dataset, named_functions(data_args), config, model_args)
    checkpoint = newest_checkpoint(config.output_dir)
    if config.resume_from_checkpoint:
        named = config.resume_from_checkpoint
        checkpoint = resumable(config.output_dir, True if str(named).lower() == "true" else named)
    if checkpoint:
        trainer.accelerator.print(f"resuming from {checkpoint}", flush=True)
    if entry.kind == "on-policy" and trainer.accelerator.is_main_process:
        print("\n".join(brief(name, trainer, data_args, config, model_args)), flush=True)
    trainer.recorder.obey(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(folder.path / "model"))
    folder.write(status="finished")
    trainer.accelerator.print(f"finished: model in {folder.path / 'model'}", flush=True)
    if getattr(config, "use_vllm", False):
        end_engine(trainer.vllm_generation)
    trainer.accelerator.end_training()  # processes that leave a group open may crash at their end


def _training_data(data_args, config):
    from trl_opd.data import load_training_data
    from trl_opd.teacher_cache import load_rollouts

    cache = getattr(config, "teacher_cache", None)
    if cache is None:
        return load_training_data(data_args)
    rollouts = load_rollouts(cache)
    instead = f", not on {data_args.dataset_name}" if data_args.dataset_name else ""
    print(f"training on the {len(rollouts)} rows of the teacher cache {cache}{instead}", flush=True)
    return rollouts


def resolve_model(name: str) -> str:
    """The path or hub id behind a model name; `testbed/base` and `testbed/teacher` come with the package.

    Raises:
        `UserError`: If the name is a local path and there is no model.
    """
    if name.startswith("testbed/"):
        from trl_opd.testbed import model_path

        return str(model_path(name.removeprefix("testbed/")))
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.exists() or len(path.parts) > 2
    if looks_local and not (path / "config.json").exists():
        raise UserError(f"There is no model in {name} (no config.json); check the path.")
    return name


def _resolve_unless_cached(option: str, config) -> str:
    name = getattr(config, option)
    try:
        return resolve_model(name)
    except UserError:
        # A cache stands in for a teacher that is not here: its name is compared then, in place of its weights.
        if option == "teacher_model_name_or_path" and config.teacher_cache:
            return name
        raise


def settle_models(config, model_args) -> None:
    """Puts how models are loaded, and the paths behind their names, into a configuration."""
    config.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (config.model_init_kwargs or {})
    for option in ("teacher_model_name_or_path", "reference_model_name_or_path"):
        if getattr(config, option, None):
            setattr(config, option, _resolve_unless_cached(option, config))
    if getattr(config, "teacher_models", None):
        config.teacher_models = {domain: resolve_model(name) for domain, name in config.teacher_models.items()}


def named_functions(data_args) -> dict[str, Any]:
    """The functions that the data arguments name, as a trainer takes them.

    Raises:
        `UserError`: If one of them does not exist.
    """
    from trl_opd import user_code
    from trl_opd.data import load_reward_functions

    found: dict[str, Any] = {"reward_funcs": load_reward_functions(data_args.reward_funcs)}
    if data_args.teacher_context:
        found["teacher_context"] = user_code.find(data_args.teacher_context, "context function")
    return found


def make_trainer(kind: type, dataset, functions: dict[str, Any], config, model_args):
    """A trainer of the given class on the model that the arguments name."""
    import datasets
    import transformers

    settle_models(config, model_args)
    config.disable_tqdm = True
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        trainer = _construct(kind, dataset, functions, config, model_args)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"The trainer could not be made: {_one_sentence(error)}") from error
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _construct(kind: type, dataset, functions: dict[str, Any], config, model_args):
    from trl import get_peft_config, get_quantization_config

    return kind(
        model=resolve_model(model_args.model_name_or_path),
        args=config,
        train_dataset=dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        **functions,
    )
