"""Train with OPD: accelerate launch trainers/opd.py --config trainers/recipes/testbed/opd.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "opd", *sys.argv[1:]]))
