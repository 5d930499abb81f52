"""Train with SCOPE: accelerate launch trainers/scope.py --config trainers/recipes/testbed/scope.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "scope", *sys.argv[1:]]))
