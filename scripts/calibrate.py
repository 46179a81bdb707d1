"""Simulation-based calibration: fit simulated traces, and see whether the true values rank evenly."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("calibrate.py"))
