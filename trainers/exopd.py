"""Train with ExOPD: accelerate launch trainers/exopd.py --config trainers/recipes/testbed/exopd.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "exopd", *sys.argv[1:]]))
