"""The side-car ``LOG.meta.json``: what the steps of a log were measured on, and what is missing from it."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from bayes_sched_vllm import __version__

PERIOD_S = 5.0
"""Counts that grow by themselves are brought up to date this often."""

# Name in the side-car: the path to it from vLLM's VllmConfig. What a version of vLLM lacks is left out.
_CONFIG = {
    "dtype": "model_config.dtype",
    "quantization": "model_config.quantization",
    "max_model_len": "model_config.max_model_len",
    "enforce_eager": "model_config.enforce_eager",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "kv_cache_block_size": "cache_config.block_size",
    "num_kv_cache_blocks": "cache_config.num_gpu_blocks",
    "enable_prefix_caching": "cache_config.enable_prefix_caching",
    "tensor_parallel_size": "parallel_config.tensor_parallel_size",
    "pipeline_parallel_size": "parallel_config.pipeline_parallel_size",
    "data_parallel_size": "parallel_config.data_parallel_size",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "enable_chunked_prefill": "scheduler_config.enable_chunked_prefill",
    "async_scheduling": "scheduler_config.async_scheduling",
    "max_concurrent_batches": "max_concurrent_batches",
    "num_speculative_tokens": "speculative_config.num_speculative_tokens",
}


class Sidecar:
    """Keeps the side-car of a log up to date. Only the writer's thread uses it.

    Parameters
    ----------
    config : VllmConfig
        The engine's: described once, with the first update.
    data_parallel_rank : int, optional
        Where there are several.
    """

    def __init__(self, config: Any, *, data_parallel_rank: int | None = None) -> None:
        self._to_describe: tuple[Any, int | None] | None = (config, data_parallel_rank)
        self._description: dict[str, Any] = {"started_at": _utc_now()}
        self._last: tuple[object, ...] = ()
        self._next_time = 0.0
        self._error: OSError | None = None

    def update(
        self, log: str, *, state: str, num_recorded: int, num_dropped: int, num_errors: int
    ) -> OSError | None:
        """Write the side-car of `log` where it is due: at once where something happened.

        Parameters
        ----------
        log : str
            Path of the log.
        state : str
            ``recording``, ``paused``, ``off`` after too many errors, or ``closed``.
        num_recorded, num_dropped : int
            Steps in the log, and steps that are missing from it.
        num_errors : int
            The recorder's own.

        Returns
        -------
        OSError or None
            Why the side-car is not what it should be.
        """
        if self._to_describe is not None:
            (config, rank), self._to_describe = self._to_describe, None
            self._description |= describe(config, data_parallel_rank=rank)
        happened = (log, state, num_dropped, num_errors)
        if happened == self._last and time.monotonic() < self._next_time:
            return self._error
        self._last, self._next_time = happened, time.monotonic() + PERIOD_S
        counts = {
            "state": state,
            "num_recorded_steps": num_recorded,
            "num_dropped_steps": num_dropped,
            "num_profiler_errors": num_errors,
            "updated_at": _utc_now(),
        }
        try:
            _write(f"{log}.meta.json", self._description | counts)
            self._error = None
        except OSError as error:
            self._error = error
        return self._error


def describe(config: Any, *, data_parallel_rank: int | None = None) -> dict[str, Any]:
    """Describe what an engine runs on.

    Parameters
    ----------
    config : VllmConfig
        vLLM's.
    data_parallel_rank : int, optional
        Where there are several.
    """
    found = {name: _plain(_follow(config, path)) for name, path in _CONFIG.items()}
    if data_parallel_rank is not None and found["data_parallel_size"] == 1:
        found["data_parallel_size"] = None  # what vLLM tells each rank of a model without experts
    device = device_name()
    num_devices = (found["tensor_parallel_size"] or 1) * (found["pipeline_parallel_size"] or 1)
    head = {
        "profiler_version": __version__,
        "vllm_version": getattr(sys.modules.get("vllm"), "__version__", None),
        "model": _model(_follow(config, "model_config.model")),
        "served_model_name": _model(_follow(config, "model_config.served_model_name")),
        "gpu": f"{num_devices} x {device}" if device and num_devices > 1 else device,
        "device_name": device,
        "data_parallel_rank": data_parallel_rank,
    }
    return {name: value for name, value in (head | found).items() if value is not None}


def device_name() -> str | None:
    """Give the name of the first device as vLLM knows it; for a CPU, its own."""
    platforms = sys.modules.get("vllm.platforms")
    current: Any = getattr(platforms, "current_platform", None)
    if current is None or type(current).__name__.startswith("NonNvml"):
        return None  # without NVML the question alone would open a CUDA context in the engine's process
    name = str(current.get_device_name())
    return _cpu_name() if name == "cpu" else name


def _follow(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).removeprefix("torch.")


def _model(name: Any) -> str | None:
    """Give a name rather than a place: folders are nobody's business who is given the log."""
    if isinstance(name, list | tuple):
        name = name[0] if name else None
    if not isinstance(name, str):
        return None
    return os.path.basename(os.path.abspath(name)) if os.path.isabs(name) or os.path.isdir(name) else name


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return f"{platform.machine()} CPU"


def _write(path: str, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
