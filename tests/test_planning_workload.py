"""Workloads: drawn from distributions, and read from logs, each slip with its file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bayes_sched.errors import InputError
from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload, read_workload

HEADER = "arrival_s,prompt_tokens,output_tokens"

type Write = Callable[..., Path]


def test_csv_and_json_lines_are_read_in_the_order_of_arrival(write_lines: Write) -> None:
    table = ["user,prompt_tokens,arrival_s,output_tokens", "a,100,12.5,7", "b,200,10,8"]
    second = {"arrival_s": 10, "prompt_tokens": 200, "output_tokens": 8, "model": "x"}
    lines = [{**second, "arrival_s": 12.5, "prompt_tokens": 100, "output_tokens": 7}, "", second]
    for path in (write_lines(table, "r.csv"), write_lines(lines, "r.jsonl")):
        found = read_workload(path)
        assert found.arrival_s.tolist() == [0.0, 2.5]
        assert found.prompt_tokens.tolist() == [200, 100]
        assert found.output_tokens.tolist() == [8, 7]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("r.csv", [], "r.csv: the file holds no request"),
        ("r.csv", [HEADER], "r.csv: the file holds no request"),
        ("r.csv", ["arrival_s,prompt_tokens", "1,2"], "r.csv, line 1: the header names no output_tokens"),
        ("r.csv", [HEADER, "1,2,3", "2,-4,3"], "r.csv, line 3: prompt_tokens is '-4'"),
        ("r.csv", [HEADER, "1,2"], "r.csv, line 2: output_tokens is missing"),
        ("r.csv", [HEADER, "1,,5"], "r.csv, line 2: prompt_tokens is missing"),
        ("r.csv", [HEADER, "-1,2,3"], "r.csv, line 2: arrival_s is '-1': give seconds"),
        ("r.csv", [HEADER, "nan,2,3"], "r.csv, line 2: arrival_s is 'nan'"),
        ("r.csv", [HEADER, "1,2.5,3"], "r.csv, line 2: prompt_tokens is '2.5': give a whole number"),
        ("r.csv", [HEADER, "1,2,99999999999"], "r.csv, line 2: output_tokens is '99999999999'"),
        ("r.csv", [b"\xff\xfe\x00"], "r.csv: not a text file of requests"),
        ("r.jsonl", ["{"], "r.jsonl, line 1: not valid JSON"),
        ("r.jsonl", ["[1]"], "r.jsonl, line 1: no JSON object"),
        ("r.jsonl", [{"arrival_s": 1, "prompt_tokens": 1}], "r.jsonl, line 1: output_tokens is missing"),
        ("r.jsonl", [{"arrival_s": 1, "prompt_tokens": True, "output_tokens": 1}], "prompt_tokens is 'True'"),
        ("r.jsonl", [{"arrival_s": [], "prompt_tokens": 1, "output_tokens": 1}], "line 1: arrival_s is"),
        ("none.csv", None, "none.csv: cannot be read"),
        ("r.txt", ["1"], "r.txt: a log of requests is a .csv or a .jsonl file"),
    ],
)
def test_a_slip_is_named_with_its_place(
    write_lines: Write, name: str, lines: list[object] | None, message: str
) -> None:
    path = write_lines(lines, name) if lines is not None else Path("none.csv")
    with pytest.raises(InputError) as caught:
        read_workload(path)
    assert message in str(caught.value)


def test_generated_requests_follow_their_distributions() -> None:
    wanted = PoissonWorkload(
        rate_per_s=4.0, prompt=Lengths(500, 2.0), output=Lengths(80), num_requests=20_000
    )
    found = wanted.draw(np.random.default_rng(2))
    assert found.rate_per_s == pytest.approx(4.0, rel=0.03)
    assert np.median(found.prompt_tokens) == pytest.approx(500, rel=0.03)
    within = (found.prompt_tokens > 250) & (found.prompt_tokens < 1000)
    assert within.mean() == pytest.approx(0.683, abs=0.02)
    assert set(found.output_tokens) == {80}


def test_round_robin_gives_every_request_to_one_server() -> None:
    requests = Workload(np.arange(7.0), np.arange(1, 8), np.ones(7, dtype=np.int64))
    parts = [requests.part(number, 3) for number in range(3)]
    assert sorted(np.concatenate([part.prompt_tokens for part in parts if part is not None])) == [
        *range(1, 8)
    ]
    assert requests.part(8, 9) is None


ONE = np.ones(1, dtype=np.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(np.empty(0), ONE[:0], ONE[:0]), "holds no request"),
        (lambda: Workload(np.zeros(1), 0 * ONE, ONE), "prompt_tokens of request 0 is 0"),
        (lambda: Workload(np.array([1.0, 0.0]), np.repeat(ONE, 2), np.repeat(ONE, 2)), "in order"),
        (lambda: Lengths(5, 0.5), r"a spread of 0\.5"),
        (lambda: Lengths(0), "a median of 0"),
        (lambda: PoissonWorkload(rate_per_s=0.0, prompt=Lengths(1), output=Lengths(1)), "a rate of 0"),
        (
            lambda: PoissonWorkload(rate_per_s=1.0, prompt=Lengths(1), output=Lengths(1), num_requests=0),
            "holds no request",
        ),
    ],
)
def test_impossible_workloads_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
