"""What the profiler says in the server's log, under the name ``vllm.scheduler_profiling``."""

import logging

# A child of vLLM's own logger: its format and its level apply.
_LOGGER = logging.getLogger("vllm.scheduler_profiling")


def inform(message: str, *values: object) -> None:
    """Say something that is as it should be; `values` fill the placeholders of `message`."""
    _LOGGER.info("Scheduler profiling: " + message, *values)


def warn(message: str, *values: object, error: BaseException | None = None) -> None:
    """Say something that a person should look at, with the traceback of `error`."""
    _LOGGER.warning("Scheduler profiling: " + message, *values, exc_info=error)
