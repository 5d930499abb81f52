"""Two processes do the same steps as one on the same global batch, and never wait for each other in vain."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.launch import launch
from tests.distributed.run import folder_of, train

#: All cases of a configuration are run by one pair of processes: starting a pair costs more than training.
WHOLE = (
    "grpo", "opd/3", "opsd/2", "opsd+half+lora", "sdpo", "sdpo+half", "sdpo+lora/3", "srpo", "srpo+half", "srpo/3",
    "exopd/2", "exopd+lora", "scope", "scope+lora/3",
)  # fmt: skip

#: Of every kind of teacher one, with and without an adapter, and with a process whose rows are not routed.
SPREAD = (
    "grpo/2", "grpo+lora", "opd/3", "opsd", "opsd+lora", "opsd+half+lora", "opsd+trust", "opsd+live+topk",
    "opsd+lora+ema/2", "sdpo", "sdpo+half", "srpo/3", "exopd", "exopd+lora", "scope+half",
)  # fmt: skip

CASES = [("cpu.yaml", case) for case in WHOLE] + [("cpu_fsdp2.yaml", case) for case in SPREAD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict[str, list[dict[str, float]]]]:
    """What two processes logged, by configuration and case."""
    cases = {"cpu.yaml": WHOLE, "cpu_fsdp2.yaml": SPREAD}
    return {config: launch(config, "run", str(folder / config), "2", *cases[config]) for config in cases}


@pytest.fixture(scope="module")
def alone(folder):
    """What one process logs; a case is run once."""
    known: dict[str, list[dict[str, float]]] = {}

    def run(case: str) -> list[dict[str, float]]:
        if case not in known:
            known[case] = train(case, folder, 1)
        return known[case]

    return run


@pytest.mark.parametrize(("config", "case"), CASES)
def test_two_processes_equal_one(config, case, together, alone, folder):
    assert_equal(config, case, alone(case), together[config][case], folder)


def assert_equal(config: str, case: str, single: list[dict], shared: list[dict], folder: Path) -> None:
    """What was logged and what was trained is the same."""
    assert len(single) == len(shared) == 3
    # A prompt that rows share is read once a forward, so more forwards may read more tokens.
    assert all(two["teacher_tokens"] >= one["teacher_tokens"] for one, two in zip(single, shared, strict=True))
    exact = [key for key in single[0] if key != "teacher_tokens"]
    for one, two in zip(single, shared, strict=True):
        # A mean over no token at all is logged as nothing.
        measured = [key for key in exact if one[key] is not None]
        assert all(two[key] is None for key in exact if key not in measured)
        assert {key: two[key] for key in measured} == pytest.approx(
            {key: one[key] for key in measured}, rel=2e-3, abs=2e-5
        )
    assert any(one["grad_norm"] > 0 for one in single)
    if case.startswith("opsd+half"):
        assert single[0]["context/dropped_fraction"] == 0.5
    assert_parameters_equal(folder_of(case, folder, 1), folder_of(case, folder / config, 2))


def assert_parameters_equal(one: Path, two: Path) -> None:
    """Adam divides by the gradient's own size: where that is rounding error, three steps of 1e-3 may differ."""
    single, shared = (load_file(path / "parameters.safetensors") for path in (one, two))
    assert single.keys() == shared.keys()
    for name, value in single.items():
        apart = (shared[name] - value).abs()
        assert apart.quantile(0.99) < 2e-5, name
        assert apart.max() < 2e-3, name


def test_a_sharded_run_is_resumed_bit_by_bit_and_its_model_is_a_plain_one(tmp_path):
    found = launch("cpu_fsdp2.yaml", "life", str(tmp_path))
    assert found == dict.fromkeys(("losses", "average", "parameters", "average moved", "model", "sampled"), True)


#: ZeRO-2 spreads no parameters; ZeRO-3 does, and takes no other weights of the student than its own.
ZERO = {
    "cpu_zero2.yaml": (
        "grpo/2", "opd/3", "opsd", "opsd+half+lora", "opsd+trust", "opsd+live+topk", "opsd+lora+ema/2", "sdpo",
        "sdpo+half", "srpo/3", "exopd+lora", "scope+half",
    ),
    "cpu_zero3.yaml": ("grpo/2", "grpo+lora", "opd/3", "opsd+lora", "opsd+half+lora", "exopd+lora", "scope+half"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", ZERO)
def test_zero_equals_one_process(config, alone, folder):
    pytest.importorskip("deepspeed")
    together = launch(config, "run", str(folder / config), "2", *ZERO[config], timeout=280, DS_ACCELERATOR="cpu")
    for case in ZERO[config]:
        assert_equal(config, case, alone(case), together[case], folder)
