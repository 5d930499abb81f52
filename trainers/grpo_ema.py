"""GRPO with an EMA anchor: accelerate launch trainers/grpo_ema.py --config trainers/recipes/testbed/grpo_ema.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "grpo_ema", *sys.argv[1:]]))
