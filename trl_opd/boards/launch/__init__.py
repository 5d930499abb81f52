"""Where a board's subprocesses run: on this machine, under Slurm, or on a Ray cluster."""
