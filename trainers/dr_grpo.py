"""Train with Dr. GRPO: accelerate launch trainers/dr_grpo.py --config trainers/recipes/testbed/dr_grpo.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "dr_grpo", *sys.argv[1:]]))
