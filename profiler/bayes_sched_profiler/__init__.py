"""Records each scheduler step of an unmodified vLLM: a plugin that vLLM loads in all of its processes.

This module is all that is imported where profiling is off.
"""

import os

__version__ = "0.1.0"

_SWITCHES = ("VLLM_ENABLE_SCHEDULER_PROFILING", "ENABLE_SCHEDULER_PROFILING")


def register() -> None:
    """Attach the profiler to vLLM's schedulers where the environment asks for it.

    vLLM calls this unguarded in each of its processes: it may be called many times and never raises.
    """
    # The truth values of settings.py, told here without importing it.
    if not any(os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on") for name in _SWITCHES):
        return
    try:
        from bayes_sched_profiler.plugin import install

        install()
    except Exception:  # a profiler is never worth a server
        try:
            import logging

            logging.getLogger("vllm.scheduler_profiling").warning(
                "Scheduler profiling is off: it could not be installed.", exc_info=True
            )
        except Exception:
            pass
