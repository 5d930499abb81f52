"""Train with SDPO: accelerate launch trainers/sdpo.py --config trainers/recipes/testbed/sdpo.yaml"""

import sys

from trl_opd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "sdpo", *sys.argv[1:]]))
