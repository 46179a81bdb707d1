"""Simulate pairs of servers with a known ratio, compare their fits, and see how often that is right."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("calibrate_comparison.py"))
