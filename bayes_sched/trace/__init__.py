"""From the files a vLLM scheduler left to one clean table of steps.

`read_trace` reads and never guesses, `clean_steps` removes what the latency equation is not about. The names
are loaded when they are first used: a command that checks paths with `bayes_sched.trace.opening` needs no
pandas.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.trace.bad_lines import BadLine, BadLines
    from bayes_sched.trace.cleaning import Cleaned, clean_steps
    from bayes_sched.trace.reading import Source, Trace, read_trace

__all__ = ["BadLine", "BadLines", "Cleaned", "Source", "Trace", "clean_steps", "read_trace"]

_MODULE_OF = {
    "BadLine": "bad_lines",
    "BadLines": "bad_lines",
    "Cleaned": "cleaning",
    "Source": "reading",
    "Trace": "reading",
    "clean_steps": "cleaning",
    "read_trace": "reading",
}

__getattr__ = loader(__name__, _MODULE_OF)
