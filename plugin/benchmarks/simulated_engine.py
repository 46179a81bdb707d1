"""vLLM's own EngineCore and schedulers in front of a device that only takes time.

Run by the Python of an environment that holds vLLM and the recorder.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# A model that is only described: nothing of it is ever loaded.
MODEL: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 32768,
    "torch_dtype": "float32",
}
PROMPT_TOKENS = 32


def prepare_environment() -> None:
    """Keep vLLM to itself; before it is imported."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }


def make_engine(*, is_async: bool, service_ms: Callable[[Any], float], max_num_seqs: int = 256) -> Any:
    """Make an EngineCore whose device takes `service_ms` (of the SchedulerOutput) for a step."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODEL))
        config = EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=16384,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
        ).create_engine_config()
    config.scheduler_config.async_scheduling = is_async  # afterwards: vLLM has none of it on a CPU
    return EngineCore(config, _executor_class(service_ms), log_stats=True)


def add_requests(engine: Any, count: int, *, max_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> None:
    """Add requests that generate `max_tokens` tokens each."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    for index in range(count):
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        name = f"{time.perf_counter_ns()}-{index}"
        engine.add_request(Request(name, [1] * prompt_tokens, params, None))


def run_steps(engine: Any) -> Iterator[None]:
    """Take step after step until no request is left."""
    while engine.scheduler.has_requests() or engine.batch_queue:
        _, is_executed = engine.step_fn()
        engine.post_step(is_executed)
        yield


def _executor_class(service_ms: Callable[[Any], float]) -> type:  # noqa: C901  # one small class
    import torch
    from vllm.v1.executor import Executor
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    class SimulatedExecutor(Executor):  # type: ignore[misc]
        def _init_executor(self) -> None:
            self.device = SimulatedDevice(service_ms)
            self._results: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
            self._prompts: dict[str, int] = {}

        def get_kv_cache_specs(self) -> list[dict[str, Any]]:
            spec = FullAttentionSpec(block_size=128, num_kv_heads=2, head_size=64, dtype=torch.float32)
            return [{"layer": spec}]

        def get_supported_kv_cache_layouts(self) -> list[list[str]]:
            return [["LBHNC"]]

        def determine_available_memory(self) -> list[int]:
            return [2**33]

        def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
            return []

        def check_health(self) -> None:
            pass

        def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
            result = self.device.submit(scheduler_output, lambda: self._sample(scheduler_output))
            if scheduler_output.total_num_scheduled_tokens == 0:
                return result
            self._results.put(result)
            return _done(None)  # as a real one: the tokens come by sample_tokens

        def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
            result = self._results.get_nowait()
            return result if non_block else result.result()

        def _sample(self, scheduler_output: Any) -> Any:
            """One token for each request whose prompt is computed."""
            from vllm.v1.outputs import ModelRunnerOutput

            done = {}
            for request in scheduler_output.scheduled_new_reqs:
                self._prompts[request.req_id] = len(request.prompt_token_ids)
                done[request.req_id] = request.num_computed_tokens
            cached = scheduler_output.scheduled_cached_reqs
            done |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            names = list(scheduler_output.num_scheduled_tokens)
            sizes = scheduler_output.num_scheduled_tokens
            sampled = [[7] if done[name] + sizes[name] >= self._prompts[name] else [] for name in names]
            return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)

    return SimulatedExecutor


class SimulatedDevice:
    """Takes one step after the other on a thread of its own, each for its known time.

    Attributes
    ----------
    service_ms : list of float
        What each step with tokens was to take, in their order.
    """

    def __init__(self, service_ms: Callable[[Any], float]) -> None:
        self.service_ms: list[float] = []
        self._service_ms = service_ms
        self._jobs: queue.SimpleQueue[tuple[float, float, Callable[[], Any], Future[Any]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, scheduler_output: Any, sample: Callable[[], Any]) -> "Future[Any]":
        """Begin a step once those before it are done; `sample` gives its result."""
        future: Future[Any] = Future()
        service_ms = 0.0
        if scheduler_output.total_num_scheduled_tokens:
            service_ms = self._service_ms(scheduler_output)
            self.service_ms.append(service_ms)
        if not service_ms:
            return _done(sample())
        self._jobs.put((time.perf_counter(), service_ms / 1000, sample, future))
        return future

    def _work(self) -> None:
        end = 0.0
        while True:
            submitted, service_s, sample, future = self._jobs.get()
            end = max(submitted, end) + service_s
            result = sample()
            time.sleep(max(0.0, end - time.perf_counter()))
            future.set_result(result)


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future
