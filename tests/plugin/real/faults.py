"""A second plugin for tests, loaded by vLLM itself: writes down each step by itself, and injects faults.

TRUTH names a file that gets one line a step (process, Unix time, tokens, prefill requests as vLLM sees them);
FAULT names a file whose content, ``NAME COUNT``, injects that many faults.
"""

import importlib
import operator
import os
import time
from collections.abc import Callable
from typing import Any


def register() -> None:
    """Hook into vLLM's scheduler, beside the recorder."""
    if "TRUTH" not in os.environ:
        return
    from vllm.v1.core.sched.scheduler import Scheduler

    if hasattr(Scheduler.update_from_output, "is_truth"):
        return
    original = Scheduler.update_from_output

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        inject()
        tokens = scheduler_output.total_num_scheduled_tokens
        if tokens:
            line = f"{os.getpid()} {time.time():.6f} {tokens} {len(scheduler_output.num_scheduled_tokens)}\n"
            fd = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(fd, line.encode())
            os.close(fd)
        return original(self, scheduler_output, model_runner_output)

    update_from_output.__dict__["is_truth"] = True
    update_from_output.__dict__.update(original.__dict__)  # the recorder's mark, where it was here first
    Scheduler.update_from_output = update_from_output


def inject() -> None:
    """Put a fault into the recorder that is raised as often as FAULT says."""
    try:
        with open(os.environ["FAULT"]) as file:
            name, count = file.read().split()
        os.unlink(os.environ["FAULT"])
    except (OSError, ValueError, KeyError):
        return
    if name == "hook":
        replace("steps", "copy_schedule", failing, int(count))
    elif name == "writer":
        replace("writer", "as_line", failing, int(count))
    elif name == "renamed":  # what the recorder asks for is what vLLM calls otherwise
        replace("steps", "_COMPUTED", operator.attrgetter("num_tokens_that_are_computed"), int(count))


def replace(module: str, name: str, first: Callable[..., Any], count: int) -> None:
    """Put `first` in the place of something of the recorder's for `count` calls."""
    target = importlib.import_module(f"bayes_sched_vllm.recorder.{module}")
    original, left = getattr(target, name), [count]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        return (first if left[0] >= 0 else original)(*args, **kwargs)

    setattr(target, name, call)


def failing(*args: object, **kwargs: object) -> None:
    """Fail."""
    raise RuntimeError("injected")
