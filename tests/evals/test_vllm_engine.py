"""vLLM for real, on the tiny model: needs an environment with vLLM (docs/vllm.md); run with -m vllm."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import make_model
from tests.evals.test_transformers_engine import GREEDY, SAMPLING, by_key, requests
from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.engines import EngineOptions, Sampling, make_engine
from trl_opd.evals.transformers_engine import TransformersEngine
from trl_opd.evals.vllm_engine import VLLMEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed in this environment"),
]


def tiny(tokenizer):
    return make_model(tokenizer, head_dim=32)  # vLLM's attention on CPUs takes no smaller one


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def draw(engine, asked=None, sampling=SAMPLING, done=frozenset()):
    asked = requests() if asked is None else asked
    return list(engine.generate(engine.batches(asked, sampling), sampling, done))


@pytest.fixture(scope="module")
def engine(model):
    engine = make_engine("vllm", model, EngineOptions(batch_size=4))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def whole(engine):
    return draw(engine)


def test_greedy_equals_the_transformers_engine(engine, model):
    asked = requests(n=1)
    assert by_key(draw(engine, asked, GREEDY)) == by_key(draw(TransformersEngine(model), asked, GREEDY))


def test_samples_follow_the_seed_and_differ(engine, whole):
    assert by_key(draw(engine)) == by_key(whole)
    assert len({generation.completion for generation in whole}) > 10
    other = by_key(draw(engine, requests(seed=1)))
    assert sum(other[generation.key].completion != generation.completion for generation in whole) > 10


def test_what_is_missing_is_drawn_as_if_nothing_had_happened(engine, whole):
    done = {generation.key for generation in whole[::2]}
    assert by_key(draw(engine, done=done)) == by_key(whole[1::2])


def test_finish_reason_and_tokens_tell_cut_from_ended(engine):
    drawn = draw(engine, requests(n=20), Sampling(temperature=2, top_p=1, max_new_tokens=40))
    assert {generation.finish_reason for generation in drawn} == {"stop", "length"}
    assert all(generation.tokens == 40 or generation.finish_reason == "stop" for generation in drawn)
    assert not any("«" in generation.completion for generation in drawn)


def test_a_portion_is_taken_only_when_there_is_room(engine):
    batches = engine.batches(requests(count=8, n=4), SAMPLING)
    taken = []
    generations = engine.generate((taken.append(batch) or batch for batch in batches), SAMPLING)
    next(generations)
    assert len(taken) <= 5  # four completions at a time, in portions of one, and the one that was finished
    assert len(list(generations)) == 31


def test_two_engines_share_the_work(model, whole):
    engine = VLLMEngine(model, EngineOptions(batch_size=2, data_parallel=2))
    assert by_key(draw(engine)) == by_key(whole)
    assert engine.details()["data_parallel"] == 2
    assert [worker.load for worker in engine._workers] == [0, 0]
    engine.close()


def test_an_adapter_is_applied(model, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(tiny(tokenizer), lora).save_pretrained(tmp_path / "adapter")
    options = EngineOptions(batch_size=4, adapter=str(tmp_path / "adapter"))
    engine = VLLMEngine(model, options)
    asked = requests(n=1)
    drawn = by_key(draw(engine, asked, GREEDY))
    engine.close()
    assert drawn == by_key(draw(TransformersEngine(model, options), asked, GREEDY))
    assert drawn != by_key(draw(TransformersEngine(model), asked, GREEDY))


def test_longer_sequences_restart_the_engine(model):
    engine = VLLMEngine(model, EngineOptions(batch_size=2))
    assert len(draw(engine, requests(1, 1))) == 1
    long = Sampling(temperature=0, top_p=1, max_new_tokens=300)
    (generation,) = draw(engine, requests(1, 1), long)
    assert generation.tokens == 300 or generation.finish_reason == "stop"
    assert engine._workers[0].length > 300
    engine.close()


def test_an_engine_that_dies_is_a_sentence_with_its_log(model):
    engine = VLLMEngine(model, EngineOptions(batch_size=2))
    generations = engine.generate(engine.batches(requests(), SAMPLING), SAMPLING)
    next(generations)
    engine._workers[0]._process.kill()
    with pytest.raises(UserError, match=r"vLLM failed \(its process ended with status -9\): see its log, ") as caught:
        list(generations)
    log = Path(str(caught.value).split("its log, ")[1].rstrip("."))
    assert log.exists()
    log.unlink()
    assert engine._workers == []


def test_a_model_that_vllm_cannot_load_is_a_sentence(model, monkeypatch):
    engine = VLLMEngine(model)
    monkeypatch.setattr(engine, "_settings", lambda: {"model": "nowhere", "adapter": None, "max_model_len": 99})
    with pytest.raises(UserError, match=r"vLLM failed \(\w+Error") as caught:
        draw(engine)
    Path(str(caught.value).split("its log, ")[1].rstrip(".")).unlink()


def test_killed_in_the_middle_and_continued_equals_undisturbed(model, sums_path, tmp_path):
    how = ["--model", model, "--engine", "vllm", "--batch-size", "2"]
    command = [*how, "--benchmark", str(sums_path), "--data-dir", str(sums_path.parent), "--max_new_tokens", "200"]
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    disturbed = [*command, "--output_dir", str(tmp_path / "cut")]
    process = subprocess.Popen([sys.executable, "-m", "trl_opd", "eval", *disturbed], stderr=subprocess.DEVNULL)
    workers = f"/proc/{process.pid}/task/{process.pid}/children"
    deadline = time.monotonic() + 200
    while not _stored(tmp_path / "cut") and time.monotonic() < deadline:
        time.sleep(0.005)
    (worker,) = Path(workers).read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < _stored(tmp_path / "cut") < 48
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "the engine outlived its owner"
    assert main(disturbed) == 0
    assert _generations(tmp_path / "cut") == _generations(tmp_path / "whole")


def _lines(folder: Path) -> list[str]:
    return [
        line for path in folder.glob("sums/generations/*.jsonl") for line in path.read_text().splitlines(keepends=True)
    ]


def _stored(folder: Path) -> int:
    return sum(line.endswith("\n") for line in _lines(folder))


def _generations(folder: Path) -> list[str]:
    return sorted(_lines(folder))
