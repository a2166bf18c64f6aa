"""The parts of `python -m vlmft.merge`, each a process: `write` makes the folder, `check` loads and questions it."""
