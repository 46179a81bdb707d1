"""Stand-ins for vLLM's scheduler and its output: what the recorder reads of them, and no more."""

import time
from collections.abc import Iterable
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


def make_request(num_prompt_tokens: int, num_computed_tokens: int = 0) -> Any:
    """One request."""
    return SimpleNamespace(num_prompt_tokens=num_prompt_tokens, num_computed_tokens=num_computed_tokens)


def make_output(sizes: dict[str, int], *, new: list[str], resumed: Iterable[str] = ()) -> Any:
    """What `Scheduler.schedule` returns."""
    return SimpleNamespace(
        num_scheduled_tokens=sizes,
        total_num_scheduled_tokens=sum(sizes.values()),
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in new],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(resumed)),
        scheduled_spec_decode_tokens={},
    )


def make_scheduler_class() -> type[Any]:
    """Make a class of its own for each test: hooks change it."""

    class Scheduler:
        def __init__(self) -> None:
            self.vllm_config = CONFIG
            self.requests: dict[str, Any] = {}
            self.running: list[str] = []
            self.waiting: list[str] = []
            self.kv_cache_manager = SimpleNamespace(usage=0.25)
            self.next_sizes: dict[str, int] = {}
            self.calls: list[str] = []

        def schedule(self, throttle_prefills: bool = False) -> Any:
            self.calls.append("schedule")
            sizes = dict(self.next_sizes)
            new = [name for name in sizes if not self.requests[name].num_computed_tokens]
            for name, size in sizes.items():
                self.requests[name].num_computed_tokens += size
            return make_output(sizes, new=new)

        def update_from_output(self, scheduler_output: Any, model_runner_output: object) -> str:
            self.calls.append("update_from_output")
            return "engine core outputs"

        def make_stats(self) -> None:
            raise AssertionError("make_stats drains vLLM's own counters")

    return Scheduler


def run_step(scheduler: Any, sizes: dict[str, int], *, device_s: float = 0.0) -> None:
    """Take one step from scheduling to its result."""
    for name in sizes:
        scheduler.requests.setdefault(name, make_request(100))
    scheduler.next_sizes = sizes
    output = scheduler.schedule()
    time.sleep(device_s)
    assert scheduler.update_from_output(output, None) == "engine core outputs"
