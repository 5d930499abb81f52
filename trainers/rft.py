"""Train with rejection fine-tuning: accelerate launch trainers/rft.py --config trainers/recipes/testbed/rft.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "rft", *sys.argv[1:]]))
