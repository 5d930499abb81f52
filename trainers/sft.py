"""Train with SFT: accelerate launch trainers/sft.py --config trainers/recipes/testbed/sft.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "sft", *sys.argv[1:]]))
