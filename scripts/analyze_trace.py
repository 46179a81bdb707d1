"""Say what a trace shows, or watch one as it grows: ``bayes-sched analyze``, ``bayes-sched watch``."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("analyze_trace.py"))
