"""``python -m bayes_sched``: the command ``bayes-sched``."""

import sys

from bayes_sched.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
