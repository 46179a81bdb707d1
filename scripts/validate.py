"""How well do models predict steps that they have not seen? Ours beside a baseline, a line and LightGBM."""

import sys

from bayes_sched.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("validate.py"))
