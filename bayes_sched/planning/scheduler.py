"""The settings of a continuous-batching scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_sched.errors import InputError

BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache, as vLLM divides it unless told otherwise."""
MAX_NUM_SEQS = 256
"""Requests that run at once at most, where nothing says otherwise."""
UNLIMITED_BLOCKS = 2**50


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What a scheduler with chunked prefill, such as vLLM's, may put into a step.

    Attributes
    ----------
    token_budget : int
        Most tokens of a step (``max_num_batched_tokens``).
    max_num_seqs : int
        Most requests running at once.
    kv_tokens : int or None
        Tokens that the KV cache holds, counted in whole blocks; None: no limit. A running request that finds
        no room preempts the newest running one, whose tokens are then computed anew.
    block_tokens : int
        Tokens of a block.
    step_overhead_ms : float
        Time between the model runs of two steps, ms: scheduling, where that is not done meanwhile.

    Raises
    ------
    InputError
        A number is out of range.
    """

    token_budget: int
    max_num_seqs: int = MAX_NUM_SEQS
    kv_tokens: int | None = None
    block_tokens: int = BLOCK_TOKENS
    step_overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_num_seqs", "block_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: give at least 1")
        if self.kv_tokens is not None and self.kv_tokens < self.block_tokens:
            raise InputError(
                f"kv_tokens = {self.kv_tokens}: the cache is divided into blocks of {self.block_tokens} "
                "tokens, give at least one"
            )
        if not 0.0 <= self.step_overhead_ms < 1e6:
            raise InputError(f"step_overhead_ms = {self.step_overhead_ms:g}: give milliseconds, 0 or more")

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return UNLIMITED_BLOCKS if self.kv_tokens is None else self.kv_tokens // self.block_tokens

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        cache = (
            "no limit on the KV cache" if self.kv_tokens is None else f"{self.kv_tokens:,} tokens of KV cache"
        )
        overhead = f", {self.step_overhead_ms:g} ms between steps" if self.step_overhead_ms else ""
        return (
            f"token budget {self.token_budget:,}, at most {self.max_num_seqs:,} sequences, {cache}{overhead}"
        )
