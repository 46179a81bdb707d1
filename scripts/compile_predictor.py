"""Compile a fit to tables: ``bayes-sched predictor``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("compile_predictor.py"))
