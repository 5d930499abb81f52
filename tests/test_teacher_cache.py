"""A cached teacher trains as the live one; a cache is made once, taken up after a kill, and refused for others."""

import json
import multiprocessing
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, load_dataset

from tests.conftest import assert_same_run, logged, losses, make_model, settings
from tests.fake_server import serving
from trl_opd import OPDConfig, OPDTrainer
from trl_opd.cli.main import main
from trl_opd.compat import tokenize_prompts
from trl_opd.errors import UserError
from trl_opd.teacher_cache import HEAD, MANIFEST, ROLLOUTS, SHARD, Manifest, load_rollouts
from trl_opd.teacher_cache_making import ROWS_PER_SHARD, with_completion_ids
from trl_opd.testbed.tasks import rows

#: Rows and completions of each.
ROWS, GROUP = 24, 2

#: Options of a training, and of the cache made for it.
KINDS = {
    "sampled": {"estimator": "k1"},
    "topk": {"estimator": "topk", "support_size": 10, "support_owner": "teacher"},
    "hidden": {"estimator": "full"},
}


@pytest.fixture(scope="module")
def paths(tokenizer, tmp_path_factory):
    """Folders of a student and a teacher, and a file of rollouts."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 0), ("teacher", 3)):
        make_model(tokenizer, seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    generator = torch.Generator().manual_seed(0)
    with (root / "rollouts.jsonl").open("w") as file:
        for row in rows("train", ROWS):
            completions = []
            for _ in range(GROUP):
                length = int(torch.randint(1, 10, (), generator=generator))
                ids = torch.randint(6, len(tokenizer), (length,), generator=generator).tolist()
                completions.append([*ids, tokenizer.eos_token_id])
            file.write(json.dumps(row | {"completion_ids": completions}) + "\n")
    return root


def recipe(folder, paths, **options) -> str:
    values = {
        "model_name_or_path": str(paths / "student"),
        "teacher_model_name_or_path": str(paths / "teacher"),
        "dtype": "float32",
        "use_cpu": True,
        "bf16": False,
        "num_generations": GROUP,
        "per_device_train_batch_size": 8,
        "max_completion_length": 12,
        "report_to": "none",
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | options))
    return str(path)


def make(folder, paths, rollouts="rollouts.jsonl", **options) -> Path:
    """A cache by the command line."""
    out = folder / "cache"
    command = ["cache", "opd", "--config", recipe(folder, paths, **options), "--output", str(out)]
    command += ["--rollouts", str(paths / rollouts)] if rollouts else []
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def caches(paths, tmp_path_factory):
    """A cache of each kind, made when it is asked for."""
    made = {}

    def get(kind) -> Path:
        if kind not in made:
            made[kind] = make(tmp_path_factory.mktemp(kind), paths, **KINDS[kind])
        return made[kind]

    return get


def trainer(folder, paths, tokenizer, live=False, rollouts=None, **options):
    """A trainer on the same rollouts, with the teacher itself or without."""
    common = {"num_generations": GROUP, "per_device_train_batch_size": 8, "max_steps": 4}
    arguments = {"train_dataset": rollouts}
    if live:
        data = load_dataset("json", data_files=str(paths / "rollouts.jsonl"), split="train")
        stored = {json.dumps(row["prompt"]): row["completion_ids"] for row in data}

        def replay(prompts, trainer):
            ids = tokenize_prompts(trainer, prompts, None, {})
            drawn = [stored[json.dumps(prompt)][index % GROUP] for index, prompt in enumerate(prompts)]
            return {"prompt_ids": ids, "completion_ids": drawn, "logprobs": None}

        arguments = {"train_dataset": data, "rollout_func": replay}
        options["teacher_model_name_or_path"] = str(paths / "teacher")
    config = OPDConfig(**settings(folder, **(common | options)))
    return OPDTrainer(str(paths / "student"), args=config, processing_class=tokenizer, **arguments)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", ["sampled", "topk", "hidden"])
def test_cached_equals_live(kind, steps, caches, paths, tokenizer, tmp_path):
    options = KINDS[kind] | {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 8 // steps}
    cached = trainer(tmp_path / "cached", paths, tokenizer, teacher_cache=str(caches(kind)), **options)
    cached.train()
    live = trainer(tmp_path / "live", paths, tokenizer, live=True, **options)
    live.train()
    assert_same_run(cached, live)
    assert len(set(losses(cached))) == 4
    assert logged(cached, "teacher_tokens") == [0] * 4
    assert logged(cached, "generated_tokens") == [0] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "k2"},
        {"estimator": "topk", "support_size": 4, "support_owner": "teacher"},
        {"estimator": "topk", "support_size": 4, "support_owner": "student"},
    ],
    ids=["k2", "teacher's support", "student's support"],
)
def test_a_larger_cache_serves_for_less(options, caches, paths, tokenizer, tmp_path):
    kind = "hidden" if options.get("support_owner") == "student" else "topk"
    options |= {"max_steps": 2}
    cached = trainer(tmp_path / "cached", paths, tokenizer, teacher_cache=str(caches(kind)), **options)
    cached.train()
    live = trainer(tmp_path / "live", paths, tokenizer, live=True, **options)
    live.train()
    assert_same_run(cached, live)


def test_the_manifest_says_what_was_scored_and_the_files_cost_what_the_docs_say(caches, paths):
    tokens = sum(len(c) for row in load_rollouts(caches("sampled")) for c in row["completion_ids"])
    for kind, per_token in (("sampled", 4), ("topk", 4 + 10 * 8), ("hidden", 4 + 32 * 4)):
        manifest = Manifest.load(caches(kind))
        assert (manifest.kind, manifest.complete, manifest.tokens) == (kind, True, tokens)
        assert (manifest.completions, manifest.dtype, manifest.temperature) == (ROWS * GROUP, "float32", 1.0)
        assert manifest.teacher_tokens > tokens
        stored = sum(path.stat().st_size for path in caches(kind).glob("scores-*"))
        shards = len(list(caches(kind).glob("scores-*")))
        assert shards == -(-ROWS * GROUP // ROWS_PER_SHARD[kind])
        assert 0 <= stored - tokens * per_token < 1000 * shards + 24 * ROWS * GROUP


def test_a_served_teacher_makes_the_same_cache(caches, paths, tokenizer, tmp_path):
    from safetensors.torch import load_file

    with serving(make_model(tokenizer, seed=3), tokenizer) as server:
        options = KINDS["topk"] | {"teacher_model_name_or_path": None, "teacher_server": server.url}
        served = make(tmp_path, paths, **options)
    ours, theirs = (load_file(folder / "scores-00000.safetensors") for folder in (caches("topk"), served))
    assert Manifest.load(served).dtype == "server"
    torch.testing.assert_close(ours["logps"], theirs["logps"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["support_logps"], theirs["support_logps"], rtol=1e-5, atol=1e-5)
    assert torch.equal(ours["keys"], theirs["keys"])


def test_without_a_file_the_student_draws_the_rollouts_and_goes_on_to_the_same_ones(paths, tmp_path, monkeypatch):
    import trl_opd.rollout_drawing as drawing

    monkeypatch.setattr(drawing, "ROWS_PER_FILE", 4)
    options = KINDS["sampled"] | {"dataset_name": "testbed", "dataset_limit": 12}
    whole = make(tmp_path / "whole", paths, rollouts=None, **options)
    drawn = load_rollouts(whole)["completion_ids"]
    assert [len(completions) for completions in drawn] == [GROUP] * 12
    assert max(len(ids) for completions in drawn for ids in completions) <= 12
    folder = tmp_path / "again" / "cache"
    folder.mkdir(parents=True)
    for name in ("drawn.json", "drawn-00000.json", "drawn-00002.json"):
        (folder / name).write_text((whole / name).read_text())
    assert load_rollouts(make(tmp_path / "again", paths, rollouts=None, **options))["completion_ids"] == drawn


#: Options without which no configuration is made here.
PLAIN = ("--model_name_or_path", "testbed/base", "--use_cpu", "true", "--bf16", "false")


def make_slowly(command: list[str]) -> None:
    """Makes a cache with a pause after each shard of four completions."""
    import trl_opd.teacher_cache_making as making

    write = making._write_shard

    def slowly(path, *rest):
        write(path, *rest)
        time.sleep(0.3)

    making.ROWS_PER_SHARD["sampled"], making._write_shard = 4, slowly
    main(command)


def test_a_killed_cache_is_taken_up_and_nothing_is_scored_twice(paths, tmp_path, monkeypatch, capsys):
    import trl_opd.teacher_cache_making as making

    path, out = recipe(tmp_path, paths, **KINDS["sampled"]), tmp_path / "cache"
    command = ["cache", "opd", "--config", path, "--output", str(out), "--rollouts", str(paths / "rollouts.jsonl")]
    child = multiprocessing.get_context("fork").Process(target=make_slowly, args=(command,))
    child.start()
    while len(list(out.glob("scores-*.safetensors"))) < 2 and child.is_alive():
        time.sleep(0.02)
    child.kill()
    child.join()
    assert not Manifest.load(out).complete
    finished = {path: path.stat().st_mtime_ns for path in out.glob("scores-*.safetensors")}
    assert 2 <= len(finished) < 12
    # An unfinished cache cannot be trained on.
    with pytest.raises(UserError, match="unfinished"):
        OPDTrainer(
            str(paths / "student"),
            args=OPDConfig(**settings(tmp_path, teacher_cache=str(out), estimator="k1", num_generations=GROUP)),
        )
    scored = []
    write = making._write_shard
    monkeypatch.setitem(making.ROWS_PER_SHARD, "sampled", 4)
    monkeypatch.setattr(making, "_write_shard", lambda path, *rest: (scored.append(path), write(path, *rest)))
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(scored) == 12 - len(finished)
    assert not set(scored) & set(finished)
    assert Manifest.load(out).complete
    scored.clear()
    assert main(command) == 0
    assert scored == []
    assert "was scored before" in capsys.readouterr().out


def refused(fragment, function, *arguments, **options):
    with pytest.raises(UserError) as refusal:
        function(*arguments, **options)
    message = str(refusal.value)
    assert fragment in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"estimator": "full"}, "estimator: full"),
        ({"estimator": "topk", "support_size": 11, "support_owner": "teacher"}, "10 likeliest tokens"),
        ({"estimator": "topk", "support_size": 5, "support_owner": "student"}, "estimator: topk"),
        ({"temperature": 0.9}, "temperature 1.0"),
        ({"num_generations": 4}, "num_generations is 4"),
        ({"max_completion_length": 5}, "max_completion_length is 5"),
        ({"use_vllm": True}, "use_vllm"),
        ({"estimator": "topk", "support_size": 5, "support_owner": "teacher", "teacher_states": "offload"}, "ignored"),
        ({"teacher_cache": "nowhere"}, "no teacher cache in nowhere"),
        ({"teacher_server": "http://127.0.0.1:1"}, "twice"),
    ],
)
def test_what_the_cache_cannot_serve_is_refused_before_training(options, fragment, caches, paths, tokenizer, tmp_path):
    values = {"estimator": "k1", "teacher_cache": str(caches("topk"))} | options
    refused(fragment, trainer, tmp_path, paths, tokenizer, **values)


#: Every file of a cache, gone or without its end; that the rollouts are cut short their reader says itself.
DAMAGES = [
    *((name, "gone") for name in (MANIFEST, ROLLOUTS, SHARD.format(0), HEAD)),
    *((name, "cut short") for name in (MANIFEST, SHARD.format(0), HEAD)),
]


@pytest.mark.parametrize(("name", "how"), DAMAGES)
def test_a_damaged_cache_is_refused_before_training(name, how, caches, paths, tokenizer, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(caches("hidden"), folder)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if how == "cut short":
        (folder / name).write_bytes(whole[:-20])
    fragment = "no teacher cache" if (name, how) == (MANIFEST, "gone") else f"damaged: {name}"
    refused(fragment, trainer, tmp_path, paths, tokenizer, estimator="full", teacher_cache=str(folder))


def test_another_teacher_is_refused(caches, paths, tokenizer, tmp_path):
    options = {"estimator": "k1", "teacher_cache": str(caches("sampled"))}
    trainer(tmp_path, paths, tokenizer, teacher_model_name_or_path=str(paths / "teacher"), **options)
    for name in (str(paths / "student"), "someone/else"):  # the second is not here: the names are compared
        refused("which is not", trainer, tmp_path, paths, tokenizer, teacher_model_name_or_path=name, **options)


def test_another_tokenizer_is_refused(caches, paths, tokenizer, tmp_path):
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    options = {"estimator": "k1", "teacher_cache": str(caches("sampled"))}
    refused("another tokenizer", trainer, tmp_path, paths, other, **options)


def test_other_rows_and_another_rendering_are_refused(caches, paths, tokenizer, tmp_path):
    import copy

    options = {"estimator": "k1", "teacher_cache": str(caches("sampled"))}
    own = load_rollouts(caches("sampled"))
    some = own.select(range(16))
    trainer(tmp_path, paths, tokenizer, rollouts=some, **options)
    changed = Dataset.from_list([row | {"completion_ids": row["completion_ids"][::-1]} for row in some])
    trainer(tmp_path, paths, tokenizer, rollouts=changed, **options)  # the same completions in another order
    changed = Dataset.from_list([row | {"completion_ids": [[7, 8, 9], row["completion_ids"][0]]} for row in some])
    refused("lacks 16 of the 32", trainer, tmp_path, paths, tokenizer, rollouts=changed, **options)
    other = copy.deepcopy(tokenizer)
    other.chat_template = "x" + other.chat_template
    refused("rendered otherwise", trainer, tmp_path, paths, other, **options)
    refused(
        "no column 'completion_ids'",
        trainer,
        tmp_path,
        paths,
        tokenizer,
        rollouts=Dataset.from_list(rows("train", 16)),
        **options,
    )


def test_another_cache_in_the_folder_is_refused(caches, paths, tmp_path, capsys):
    make(tmp_path, paths, **KINDS["sampled"])
    command = ["cache", "opd", "--output", str(tmp_path / "cache"), "--rollouts", str(paths / "rollouts.jsonl")]
    for options, fragment in (
        ({"temperature": 0.9}, "temperature"),
        ({"teacher_model_name_or_path": str(paths / "student")}, "teacher_sha256"),
        (KINDS["topk"], "kind"),
    ):
        path = recipe(tmp_path / "other", paths, **KINDS["sampled"] | options)
        assert main([*command, "--config", path]) == 2
        assert fragment in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["opd"], "--output is missing"),
        (
            ["opsd", "--output", "x", *PLAIN],
            "opsd has no external teacher",
        ),
        (
            ["opd", "--output", "x", *PLAIN],
            "none was given",
        ),
    ],
)
def test_a_command_that_cannot_work_is_refused(arguments, fragment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *arguments]) == 2
    assert fragment in capsys.readouterr().err


def test_the_command_explains_itself(capsys):
    assert main(["cache", "--help"]) == 0
    assert "trl-opd cache METHOD --config RECIPE.yaml" in capsys.readouterr().out


def test_rollouts_come_as_ids_or_as_texts(tokenizer):
    eos = tokenizer.eos_token_id
    one, two = tokenizer("12")["input_ids"], tokenizer("3")["input_ids"]
    prompt = rows("train", 1)[0]["prompt"]
    for column, value, found in (
        ("completion_ids", [[7, 8], [9]], [[7, 8], [9]]),
        ("completion_ids", [7, 8], [[7, 8]]),
        ("completions", ["12", "3"], [[*one, eos], [*two, eos]]),
        ("completion", "12", [[*one, eos]]),
    ):
        made = with_completion_ids(Dataset.from_list([{"prompt": prompt, "answer": "4", column: value}]), tokenizer)
        assert made["completion_ids"][0] == found
        assert set(made.column_names) == {"prompt", "answer", "completion_ids"}
    for column, value, fragment in (
        ("completion_ids", [[7], []], "empty"),
        ("completion_ids", [[10**6]], "another model's"),
        ("answer", "4", "completion_ids"),
    ):
        refused(fragment, with_completion_ids, Dataset.from_list([{"prompt": prompt, column: value}]), tokenizer)


def test_a_run_by_the_command_line_trains_on_the_cached_rows(caches, paths, tmp_path, capsys):
    path = recipe(tmp_path, paths, dataset_name="testbed", max_steps=2, save_strategy="no", **KINDS["hidden"])
    command = ["train", "opd", "--config", path, "--teacher_cache", str(caches("hidden"))]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == 0
    assert f"training on the {ROWS} rows of the teacher cache" in capsys.readouterr().out
    assert (caches("hidden") / MANIFEST).exists()


def test_the_commands_of_the_docs_run_as_they_are(tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    (block,) = re.findall(r"^```bash\n(.*?)^```$", (root / "docs/teachers.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "trainers").symlink_to(root / "trainers")
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        program, *command = shlex.split(line)
        assert program == "trl-opd"
        assert main(command) == 0
    printed = capsys.readouterr().out
    assert "runs/cache: 64 rows, 64 completions" in printed
    assert "step 2/2" in printed
