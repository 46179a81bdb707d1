"""What the steps of an engine are measured on: vLLM, model, device, parallelism, limits."""

import os
import platform
import sys
from typing import Any

from bayes_sched_profiler import __version__

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
