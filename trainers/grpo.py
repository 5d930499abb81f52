"""Train with GRPO: accelerate launch trainers/grpo.py --config trainers/recipes/testbed/grpo.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "grpo", *sys.argv[1:]]))
