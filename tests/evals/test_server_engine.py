import json

import pytest
from urllib3.util import Retry

from tests.evals.fake_server import FakeServer
from trl_opd.errors import UserError
from trl_opd.evals import server_engine
from trl_opd.evals.engines import EngineOptions, Request, Sampling, make_engine, request_seed
from trl_opd.evals.runner import evaluate

SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=20)


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def fast_retries(monkeypatch):
    monkeypatch.setattr(server_engine, "RETRIES", server_engine.RETRIES.new(total=3, backoff_factor=0))


def engine(server, **options):
    return make_engine("server", "sums", EngineOptions(base_url=server.url, **options))


def requests(count: int = 12) -> list[Request]:
    return [
        Request(f"p{i}", 0, [{"role": "user", "content": f"{i}+1=?"}], request_seed(0, f"p{i}", 0))
        for i in range(count)
    ]


def draw(engine, asked=None, done=frozenset()):
    return list(engine.generate(engine.batches(requests() if asked is None else asked, SAMPLING), SAMPLING, done))


def test_completions_follow_the_seed_and_say_how_they_ended(server):
    drawn = {generation.key: generation for generation in draw(engine(server, batch_size=5))}
    assert len(drawn) == 12
    for request in requests():
        seed = request.seed % 2**31
        generation = drawn[request.key]
        assert generation.completion == f"The sum is {seed % 7}"
        assert generation.tokens == 4 + seed % 3
        assert generation.finish_reason == ("length" if seed % 5 == 0 else "stop")
        assert json.loads(generation.prompt) == request.messages
    assert {generation.finish_reason for generation in drawn.values()} == {"length", "stop"}


def test_the_body_carries_the_sampling_and_the_template_variables(server):
    draw(engine(server, chat_template_kwargs={"enable_thinking": False}), requests(1))
    (body,) = server.bodies
    expected = {"model": "sums", "temperature": 0.8, "top_p": 0.95, "max_tokens": 20}
    assert {name: body[name] for name in expected} == expected
    assert body["messages"] == requests(1)[0].messages
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    server.bodies.clear()
    draw(engine(server), requests(1))
    assert "chat_template_kwargs" not in server.bodies[0]


def test_so_many_requests_are_sent_at_a_time_and_no_more(server):
    server.delay = 0.05
    assert len(draw(engine(server, batch_size=4), requests(20))) == 20
    assert server.most_active == 4


def test_what_is_done_is_not_asked_for(server):
    done = {request.key for request in requests()[:9]}
    assert {generation.key for generation in draw(engine(server), done=done)} == {r.key for r in requests()[9:]}
    assert len(server.bodies) == 3


def test_a_portion_is_taken_only_when_there_is_room(server):
    taken = []
    server.delay = 0.05

    def portions():
        for request in requests():
            taken.append(request.key)
            yield [request]

    generations = engine(server, batch_size=2).generate(portions(), SAMPLING)
    next(generations)
    assert len(taken) == 2
    assert len(list(generations)) == 11


def test_a_busy_server_is_asked_again(server, fast_retries):
    server.faults = [503, 429, 500]
    (generation,) = draw(engine(server), requests(1))
    assert len(server.bodies) == 4
    assert generation.completion.startswith("The sum is")
    assert len({body["seed"] for body in server.bodies}) == 1


def test_a_server_that_is_down_in_the_middle_is_waited_for_and_then_given_up(server, fast_retries):
    running = engine(server)
    server.close()
    with pytest.raises(UserError, match=r"no longer answers \(NewConnectionError.*repeat the command"):
        draw(running, requests(1))


def test_a_server_that_stays_busy_is_given_up(server, fast_retries):
    server.faults = [503] * 9
    with pytest.raises(UserError, match="refused p0 with status 503"):
        draw(engine(server), requests(1))


def test_a_refusal_is_told_in_the_servers_words_and_not_repeated(server):
    server.faults = [400]
    with pytest.raises(UserError, match="refused p0 with status 400: the context has 512 tokens"):
        draw(engine(server), requests(1))
    assert len(server.bodies) == 1


def test_tokens_are_never_guessed(server):
    server.usage = False
    with pytest.raises(UserError, match="no chat completion with usage"):
        draw(engine(server), requests(1))


def test_reasoning_that_comes_apart_is_put_before_the_answer(server):
    server.reasoning = "1 and 1"
    (generation,) = draw(engine(server), requests(1))
    assert generation.completion.startswith("<think>\n1 and 1\n</think>\nThe sum is")


def test_what_cannot_work_is_refused_at_the_start(server, monkeypatch):
    with pytest.raises(UserError, match="needs base_url"):
        make_engine("server", "sums")
    with pytest.raises(UserError, match="is no address"):
        make_engine("server", "sums", EngineOptions(base_url="localhost:8000"))
    with pytest.raises(UserError, match="has no model 'other': it has sums"):
        make_engine("server", "other", EngineOptions(base_url=server.url))
    with pytest.raises(UserError, match="not that of an OpenAI-compatible server"):
        make_engine("server", "sums", EngineOptions(base_url=f"{server.url}/api"))
    server.key = "secret"
    with pytest.raises(UserError, match="wants an API key"):
        engine(server)
    monkeypatch.delenv("SUMS_KEY", raising=False)
    with pytest.raises(UserError, match="SUMS_KEY is empty"):
        engine(server, api_key_env="SUMS_KEY")
    monkeypatch.setenv("SUMS_KEY", "secret")
    assert engine(server, api_key_env="SUMS_KEY").url == f"{server.url}/v1"
    server.close()
    with pytest.raises(UserError, match="No server answers at"):
        engine(server, api_key_env="SUMS_KEY")


def test_the_key_is_recorded_nowhere(server, monkeypatch):
    server.key = "secret"
    monkeypatch.setenv("SUMS_KEY", "secret")
    made = engine(server, api_key_env="SUMS_KEY")
    assert "secret" not in json.dumps([made.identity(), made.details()])


def test_a_run_on_a_server_goes_on_where_it_stopped(server, benchmark, sums_path, tmp_path, fast_retries):
    settings = {"data_dir": sums_path.parent, "n": 2}
    whole = evaluate(benchmark, engine(server, batch_size=2), tmp_path / "whole", **settings)
    stopping = engine(server, batch_size=2)
    server.faults = [400]
    with pytest.raises(UserError, match="status 400"):
        evaluate(benchmark, stopping, tmp_path / "cut", **settings)
    assert evaluate(benchmark, engine(server, batch_size=3), tmp_path / "cut", **settings) == whole


def test_the_retries_wait_two_minutes_in_all():
    retries, waits = server_engine.RETRIES, []
    while retries.total:
        retries = Retry.increment(retries, "POST", "/", error=None, response=None)
        waits.append(retries.get_backoff_time())
    assert 100 <= sum(waits) <= 130
