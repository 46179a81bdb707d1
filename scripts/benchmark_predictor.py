"""Try out a compiled predictor: how fast, how close to its fit, and how soon it notices a drift."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("benchmark_predictor.py"))
