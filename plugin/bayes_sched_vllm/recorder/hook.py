"""The hooks around two methods of vLLM's schedulers, and the fuse that takes them out.

The original is called exactly once, with what it was called with, and its exceptions pass through; whatever
goes wrong in the recorder itself stays there: it is told in the server's log, and too much of it switches the
recorder off.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from bayes_sched_vllm.recorder.steps import Recorder

MAX_ERRORS = 20

_Method = Callable[..., Any]

# A child of vLLM's own logger: its format and its level apply.
_LOGGER = logging.getLogger("vllm.scheduler_profiling")
_MARK = "_bayes_sched_vllm_hook"
_RECORDER = "_bayes_sched_vllm_recorder"


def inform(message: str, *values: object) -> None:
    """Say something that is as it should be; `values` fill the placeholders of `message`."""
    _LOGGER.info("Scheduler profiling: " + message, *values)


def warn(message: str, *values: object, error: BaseException | None = None) -> None:
    """Say something that a person should look at, with the traceback of `error`."""
    _LOGGER.warning("Scheduler profiling: " + message, *values, exc_info=error)


class Fuse:
    """Counts the recorder's own errors, of all that it does in one process.

    Attributes
    ----------
    num_errors : int
        Errors so far.
    is_blown : bool
        There were `MAX_ERRORS`: nothing is recorded any more.
    """

    def __init__(self) -> None:
        self.num_errors = 0
        self.is_blown = False
        self._told: set[str] = set()

    def count(self, error: Exception, where: str) -> None:
        """Count an error; the first of each kind is told. Never raises."""
        try:
            self.num_errors += 1
            kind = f"{where}: {type(error).__name__}"
            if kind not in self._told:
                self._told.add(kind)
                warn("error in the %s; serving goes on.", where, error=error)
            if self.num_errors >= MAX_ERRORS and not self.is_blown:
                self.is_blown = True
                warn("%d errors: switched off; serving goes on.", self.num_errors)
        except Exception:
            self.is_blown = True


class Hook:
    """Wraps scheduler classes.

    Parameters
    ----------
    make_recorder : callable
        Gives the recorder of a scheduler that is seen for the first time, on the engine's thread.
    fuse : Fuse
        Where errors are counted.
    """

    def __init__(self, make_recorder: Callable[[Any], Recorder], fuse: Fuse) -> None:
        self._make_recorder = make_recorder
        self._fuse = fuse

    def wrap(self, scheduler_class: type[Any]) -> None:
        """Wrap a class and all its subclasses, those of later on too.

        Raises
        ------
        AttributeError
            If the class has not got the two methods.
        """
        for name in ("schedule", "update_from_output"):
            if not callable(getattr(scheduler_class, name, None)):
                raise AttributeError(f"{scheduler_class.__qualname__} has no method {name}")
        self._wrap_tree(scheduler_class)
        self._wrap_later_subclasses(scheduler_class)

    def _wrap_tree(self, scheduler_class: type[Any]) -> None:
        for name, wrapped in (("schedule", self._schedule), ("update_from_output", self._update)):
            original = scheduler_class.__dict__.get(name)  # inherited ones are wrapped where they are defined
            if callable(original) and not hasattr(original, _MARK):
                wrapper = functools.wraps(original)(wrapped(original))
                setattr(wrapper, _MARK, True)
                setattr(scheduler_class, name, wrapper)
        for subclass in scheduler_class.__subclasses__():
            self._wrap_tree(subclass)

    def _wrap_later_subclasses(self, scheduler_class: type[Any]) -> None:
        """Wrap the classes that are imported after the plugins, such as one named by ``--scheduler-cls``."""
        if hasattr(scheduler_class.__init_subclass__, _MARK):
            return

        own = scheduler_class.__dict__.get("__init_subclass__")

        def init_subclass(cls: type[Any], /, **options: Any) -> None:
            (own.__get__(None, cls) if own else super(scheduler_class, cls).__init_subclass__)(**options)
            try:
                self._wrap_tree(cls)
            except Exception as error:
                self._fuse.count(error, "hook")

        setattr(init_subclass, _MARK, True)
        scheduler_class.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]

    def _schedule(self, original: _Method) -> _Method:
        def schedule(scheduler: Any, /, *args: Any, **kwargs: Any) -> Any:
            recorder = self._enter(scheduler)
            if recorder is None:
                return original(scheduler, *args, **kwargs)
            timestamp, begin = time.time(), time.perf_counter()
            try:
                output = original(scheduler, *args, **kwargs)
            finally:
                recorder.is_scheduling = False
            end = time.perf_counter()
            try:
                recorder.scheduled(scheduler, output, timestamp=timestamp, begin=begin, end=end)
            except Exception as error:
                self._fuse.count(error, "hook")
            return output

        return schedule

    def _update(self, original: _Method) -> _Method:
        def update_from_output(scheduler: Any, /, *args: Any, **kwargs: Any) -> Any:
            recorder: Recorder | None = getattr(scheduler, _RECORDER, None)
            if recorder is not None and not self._fuse.is_blown:
                try:
                    recorder.finished(args[0] if args else kwargs["scheduler_output"])
                except Exception as error:
                    self._fuse.count(error, "hook")
            return original(scheduler, *args, **kwargs)

        return update_from_output

    def _enter(self, scheduler: Any) -> Recorder | None:
        """Give the recorder of a scheduler; None: switched off, or inside of `schedule` already."""
        if self._fuse.is_blown:
            return None
        try:
            recorder: Recorder | None = getattr(scheduler, _RECORDER, None)
            if recorder is None:
                recorder = self._make_recorder(scheduler)
                setattr(scheduler, _RECORDER, recorder)
            if recorder.is_scheduling:
                return None
            recorder.is_scheduling = True
        except Exception as error:
            self._fuse.count(error, "hook")
            return None
        return recorder
