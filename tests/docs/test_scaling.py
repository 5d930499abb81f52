"""The memory table of docs/scaling.md is what the estimate says."""

from tests.docs.scaling import PAGE, peak, settings, with_table


def test_the_table_is_that_of_the_estimate():
    page = PAGE.read_text()
    assert page == with_table(page), "run: python -m tests.docs.scaling"


def test_more_devices_take_less_of_each_and_an_adapter_less_than_the_whole():
    for size in ("1.7B", "8B"):
        runs = settings(size)
        for run in runs.values():
            assert peak(run, "fsdp2", 16) < peak(run, "fsdp2", 8) < peak(run, "single", 1) == peak(run, "ddp", 8)
        assert peak(runs["OPSD, LoRA"], "single", 1) < peak(runs["SDPO, moving average"], "single", 1) / 2
