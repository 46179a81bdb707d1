"""Fit a latency model to a step trace: ``bayes-sched fit``, with ``--pool`` ``bayes-sched pool``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("fit_bayes.py"))
