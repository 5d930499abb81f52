"""Train with OPSD: accelerate launch trainers/opsd.py --config trainers/recipes/testbed/opsd.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "opsd", *sys.argv[1:]]))
