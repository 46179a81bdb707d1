"""Fit a few steps of a trace with and without a pool of other servers, and score both on the rest."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("validate_pool.py"))
