import importlib.util
from dataclasses import fields

import pytest

from trl_opd.cli.eval.run import build_parser
from trl_opd.errors import UserError
from trl_opd.evals import vllm_engine
from trl_opd.evals.engines import ENGINES, EngineOptions, make_engine
from trl_opd.evals.transformers_engine import TransformersEngine


def test_an_engine_by_its_name(student_path):
    assert isinstance(make_engine("transformers", student_path), TransformersEngine)
    with pytest.raises(UserError, match="no engine 'jax': choose one of transformers, vllm, server"):
        make_engine("jax", student_path)


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("transformers", {"tensor_parallel": 2}),
        ("transformers", {"base_url": "http://localhost"}),
        ("vllm", {"request_timeout": 3.0}),
        ("server", {"adapter": "somewhere"}),
        ("server", {"dtype": "float32"}),
    ],
)
def test_an_option_of_another_engine_is_refused(engine, options, student_path):
    with pytest.raises(UserError, match=f"{next(iter(options))}=.* does not act on the {engine} engine"):
        make_engine(engine, student_path, EngineOptions(**options))


def test_every_option_acts_on_an_engine_and_can_be_given_on_the_command_line():
    names = {field.name for field in fields(EngineOptions)}
    assert {name for uses in ENGINES.values() for name in uses} == names
    assert names <= vars(build_parser().parse_args(["--model", "x"])).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_parallel": 0}, "data_parallel must be at least 1"),
        ({"tensor_parallel": 0}, "tensor_parallel must be at least 1"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be above 0 and at most 1"),
        ({"request_timeout": 0.0}, "request_timeout must be above 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        EngineOptions(**options)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_missing_is_a_sentence(student_path):
    with pytest.raises(UserError, match="vLLM is not installed here"):
        make_engine("vllm", student_path)


def test_more_engines_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    pairs = vllm_engine._shards(EngineOptions(tensor_parallel=2), "cuda")
    assert pairs == [{"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    assert len(vllm_engine._shards(EngineOptions(), "cuda")) == 4
    with pytest.raises(UserError, match="3 vLLM engines of 2 GPUs each need more than the 4"):
        vllm_engine._shards(EngineOptions(tensor_parallel=2, data_parallel=3), "cuda")
    with pytest.raises(UserError, match="1 vLLM engines of 8 GPUs each need more than the 4"):
        vllm_engine._shards(EngineOptions(tensor_parallel=8), "cuda")
    with pytest.raises(UserError, match="tensor_parallel spreads the model over GPUs"):
        vllm_engine._shards(EngineOptions(tensor_parallel=2), "cpu")
