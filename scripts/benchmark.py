"""Measure the sampler: beside the model file as it stands (sampling), or over whole fits (fits)."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("benchmark.py"))
