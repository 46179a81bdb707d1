"""Stand-ins for vLLM's scheduler and its output: what the profiler reads of them, and no more."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(model="org/some-model", served_model_name="served", dtype="torch.bfloat16"),
    cache_config=SimpleNamespace(block_size=16, cache_dtype="auto"),
    parallel_config=SimpleNamespace(
        tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1, data_parallel_rank=0
    ),
    scheduler_config=SimpleNamespace(max_num_batched_tokens=2048, max_num_seqs=64, async_scheduling=True),
)


@dataclass
class Request:
    """One request."""

    num_prompt_tokens: int
    num_computed_tokens: int = 0


@dataclass
class Output:
    """What `Scheduler.schedule` returns."""

    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[Any] = field(default_factory=list)
    scheduled_cached_reqs: Any = field(default_factory=lambda: SimpleNamespace(resumed_req_ids=set()))
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Sum over the requests."""
        return sum(self.num_scheduled_tokens.values())


def make_scheduler_class() -> type[Any]:
    """Make a class of its own for each test: hooks change it."""

    class Scheduler:
        def __init__(self) -> None:
            self.vllm_config = CONFIG
            self.requests: dict[str, Request] = {}
            self.running: list[str] = []
            self.waiting: list[str] = []
            self.kv_cache_manager = SimpleNamespace(usage=0.25)
            self.next_sizes: dict[str, int] = {}
            self.calls: list[str] = []

        def schedule(self, throttle_prefills: bool = False) -> Output:
            self.calls.append("schedule")
            sizes = dict(self.next_sizes)
            new = [name for name in sizes if not self.requests[name].num_computed_tokens]
            for name, size in sizes.items():
                self.requests[name].num_computed_tokens += size
            return Output(sizes, [SimpleNamespace(req_id=name) for name in new])

        def update_from_output(self, scheduler_output: Output, model_runner_output: object) -> str:
            self.calls.append("update_from_output")
            return "engine core outputs"

        def make_stats(self) -> None:
            raise AssertionError("make_stats drains vLLM's own counters")

    return Scheduler


def run_step(scheduler: Any, sizes: dict[str, int], *, prompt: int = 100, device_s: float = 0.0) -> Output:
    """Take one step from scheduling to its result."""
    for name in sizes:
        scheduler.requests.setdefault(name, Request(prompt))
    scheduler.next_sizes = sizes
    output: Output = scheduler.schedule()
    time.sleep(device_s)
    scheduler.update_from_output(output, None)
    return output
