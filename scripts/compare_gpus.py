"""Compare servers by their fits: ``bayes-sched compare``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("compare_gpus.py"))
