"""Records each scheduler step of an unmodified vLLM: a plugin that vLLM loads in all of its processes.

This module is all that is imported where recording is off.
"""

import os

SWITCH = "ENABLE_SCHEDULER_PROFILING"
TRUE = ("1", "true", "yes", "on")


def register() -> None:
    """Attach the recorder to vLLM's schedulers where the environment asks for it.

    vLLM calls this unguarded in each of its processes: it may be called many times and never raises.
    """
    if not any(os.environ.get(prefix + SWITCH, "").strip().lower() in TRUE for prefix in ("VLLM_", "")):
        return
    try:
        from bayes_sched_vllm.recorder.plugin import install

        install()
    except Exception:  # a record is never worth a server
        try:
            import logging

            logging.getLogger("vllm.scheduler_profiling").warning(
                "Scheduler profiling is off: it could not be installed.", exc_info=True
            )
        except Exception:
            pass
