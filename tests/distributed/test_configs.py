"""The launch configurations are what accelerate takes them for."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tests.distributed.launch import CONFIGS

KINDS = {
    "single": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "cpu": DistributedType.MULTI_GPU,
    "cpu_fsdp2": DistributedType.FSDP,
    "cpu_zero2": DistributedType.DEEPSPEED,
    "cpu_zero3": DistributedType.DEEPSPEED,
}


def test_every_configuration_is_known():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == ("bf16" if name in ("ddp", "fsdp2", "zero2", "zero3") else "no")
    assert config.num_processes == {"single": 1}.get(name, 2 if name.startswith("cpu") else 8)
    if "fsdp" in name:
        assert config.fsdp_config["fsdp_version"] == 2
    if "zero" in name:
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
