"""A board: methods x seeds -> training runs -> evaluations -> statistics -> a table and one page that works offline.

`spec` reads and checks the YAML, `runner` does what is missing, `collect` reads the stored runs, `stats` compares
them, `report` writes `results.json`, `table.md` and `board.html`. The boards know the trainer and the evaluation
harness by their command lines and their files alone.
"""
