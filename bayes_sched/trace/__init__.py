"""From the files a vLLM scheduler left to one clean table of steps.

`read_trace` reads and never guesses, `clean_steps` removes what the latency equation is not about.
"""

from bayes_sched.trace.bad_lines import BadLine, BadLines
from bayes_sched.trace.cleaning import Cleaned, clean_steps
from bayes_sched.trace.reading import Source, Trace, read_trace

__all__ = ["BadLine", "BadLines", "Cleaned", "Source", "Trace", "clean_steps", "read_trace"]
