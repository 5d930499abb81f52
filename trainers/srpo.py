"""Train with SRPO: accelerate launch trainers/srpo.py --config trainers/recipes/testbed/srpo.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "srpo", *sys.argv[1:]]))
