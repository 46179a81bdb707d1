"""Plan a server: ``bayes-sched plan``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("plan.py"))
