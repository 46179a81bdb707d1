"""The steps of a request under chunked prefill."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bayes_sched.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSteps:
    """A request that a scheduler with chunked prefill serves beside running decodes.

    Every step first gives each decode its token; what the token budget leaves goes to the prompt. The first
    output token comes out of the last prefill step, each further one out of a decode-only step. The decodes
    run on all the while, and no other request comes; a wait for the first step is not counted.

    Attributes
    ----------
    prompt_tokens : int
        Tokens to prefill (those in the prefix cache left out).
    output_tokens : int or None
        Tokens to generate, the first one included; None where that is of no interest.
    decodes : int
        Other requests, which decode in every step.
    token_budget : int
        Tokens of a step, at most, those of the decodes included.

    Raises
    ------
    InputError
        A number is out of range, or the budget has no room for a prefill.
    """

    prompt_tokens: int
    output_tokens: int | None = None
    decodes: int = 0
    token_budget: int

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise InputError(f"prompt_tokens = {self.prompt_tokens}: a prompt has at least 1 token")
        if self.output_tokens is not None and self.output_tokens < 1:
            raise InputError(f"output_tokens = {self.output_tokens}: an answer has at least 1 token")
        if self.decodes < 0:
            raise InputError(f"decodes = {self.decodes}: give a number that is not negative")
        if self.token_budget <= self.decodes:
            raise InputError(
                f"a token budget of {self.token_budget:,} leaves no token for a prefill beside "
                f"{self.decodes:,} decodes: give a larger budget or fewer decodes"
            )

    @property
    def num_prefill_steps(self) -> int:
        """Steps until the first output token."""
        return -(-self.prompt_tokens // (self.token_budget - self.decodes))

    @property
    def num_decode_steps(self) -> int:
        """Steps after the first output token."""
        return 0 if self.output_tokens is None else self.output_tokens - 1

    @property
    def table(self) -> pd.DataFrame:
        """The kinds of steps: ``phase`` (prefill, decode), ``batch_size``, ``total_tokens``, ``count``."""
        chunk = self.token_budget - self.decodes
        rest = self.prompt_tokens - (self.num_prefill_steps - 1) * chunk
        requests = self.decodes + 1
        counts: dict[tuple[str, int, int], int] = {}
        for key, count in (
            (("prefill", requests, self.token_budget), self.num_prefill_steps - 1),
            (("prefill", requests, self.decodes + rest), 1),
            (("decode", requests, requests), self.num_decode_steps),
        ):
            counts[key] = counts.get(key, 0) + count
        rows = [(*key, count) for key, count in counts.items() if count]
        return pd.DataFrame(rows, columns=["phase", "batch_size", "total_tokens", "count"])
