"""Train with DAPO's options: accelerate launch trainers/dapo.py --config trainers/recipes/testbed/dapo.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "dapo", *sys.argv[1:]]))
