"""Studies by the maintainers, each run as `python -m memcomp.experiments.studies.NAME`; see experiments/results."""
