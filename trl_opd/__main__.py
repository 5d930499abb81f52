"""`python -m trl_opd` is `trl-opd`."""

from trl_opd.cli.main import entry

if __name__ == "__main__":
    entry()
