"""Compare models on one trace: ``bayes-sched models``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("compare_models.py"))
