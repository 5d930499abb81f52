"""The engine around a running vLLM, with a stand-in for vLLM; for vLLM itself: tests/test_vllm_training.py."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import make_model
from tests.evals.test_transformers_engine import SAMPLING, requests
from trl_opd.errors import UserError
from trl_opd.evals.engines import Sampling
from trl_opd.evals.live_vllm import LiveVLLMEngine


class StandIn:
    """vLLM's engine: each step finishes the oldest request, with its prompt's first token and the stop token."""

    model_config = SimpleNamespace(dtype=torch.bfloat16, max_model_len=100)
    vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=4), cache_config=SimpleNamespace(gpu_memory_utilization=0.3)
    )

    def __init__(self):
        self.open, self.asked, self.most = {}, {}, 0

    def add_request(self, name, prompt, params, lora_request=None):
        self.open[name] = [prompt["prompt_token_ids"][0], params.stop_token_ids[0]]
        self.asked[name] = params
        self.most = max(self.most, len(self.open))

    def step(self):
        name = next(iter(self.open))
        outputs = [SimpleNamespace(token_ids=self.open.pop(name))]
        return [SimpleNamespace(request_id=name, finished=True, outputs=outputs)]

    def abort_request(self, names):
        for name in names:
            del self.open[name]


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    return StandIn()


@pytest.fixture
def engine(vllm, tokenizer):
    return LiveVLLMEngine(SimpleNamespace(llm_engine=vllm), make_model(tokenizer), tokenizer, "run at step 2")


def test_each_request_is_drawn_once_with_a_seed_of_its_own_and_no_more_at_a_time_than_there_is_room_for(engine, vllm):
    asked = requests(count=4, n=2)
    drawn = list(engine.generate(engine.batches(asked, SAMPLING), SAMPLING, done={asked[0].key}))
    assert {generation.key for generation in drawn} == {request.key for request in asked[1:]}
    assert {generation.finish_reason for generation in drawn} == {"stop"}
    assert {params.seed for params in vllm.asked.values()} == {request.seed for request in asked[1:]}
    assert {params.max_tokens for params in vllm.asked.values()} == {SAMPLING.max_new_tokens}
    assert vllm.most == 4


def test_what_nobody_reads_is_taken_back_and_the_engine_goes_on(engine, vllm):
    generations = engine.generate(engine.batches(requests(), SAMPLING), SAMPLING)
    next(generations)
    generations.close()
    assert vllm.open == {}
    assert len(list(engine.generate(engine.batches(requests(), SAMPLING), SAMPLING))) == len(requests())


def test_the_identity_is_that_of_weights_in_memory_in_the_engines_precision(engine):
    identity = engine.identity()
    assert (identity["engine"], identity["dtype"]) == ("vllm", "bfloat16")
    assert identity["model"].startswith("live:")


def test_what_the_engine_has_no_room_for_is_refused(engine):
    with pytest.raises(
        UserError, match=r"^max_new_tokens=99 and the \d+ tokens .* exceed the 100 tokens .*vllm_max_mod"
    ):
        engine.batches(requests(), Sampling(temperature=1, top_p=1, max_new_tokens=99))
