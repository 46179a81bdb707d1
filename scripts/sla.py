"""Say what a fitted server may promise: ``bayes-sched sla``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("sla.py"))
