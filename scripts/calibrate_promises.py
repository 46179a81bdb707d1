"""See how often promises of latency are kept: by simulated servers, and by steps held out of real traces."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("calibrate_promises.py"))
