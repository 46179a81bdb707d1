"""Hold the scheduler simulator against a real server: its decisions, and the times that clients measured."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("check_simulator.py"))
