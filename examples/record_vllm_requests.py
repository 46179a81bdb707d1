"""Record `vllm_cpu_requests.jsonl.gz` and its steps: what clients of a real vLLM measured, and what it did.

The OpenAI-compatible server of vLLM (CPU build) serves a small model with random weights. Clients send
requests by a Poisson process, each whether or not the others were answered, and take the time of every token
that streams back; the recorder writes down each step of the scheduler. Both clocks are the
machine's Unix time. Run by the Python of an environment that holds vLLM and the plugin; some six minutes:

    $(sh scripts/_vllm_venv.sh) examples/record_vllm_requests.py examples/vllm_cpu_requests

writes PREFIX.jsonl.gz, one request a line, PREFIX_steps.jsonl.gz, and the side-car of the steps,
PREFIX_steps.jsonl.meta.json. `scripts/check_simulator.py` holds the simulator against them. A server whose
queue and KV cache are full, so that requests wait and are preempted, one minute:

    ... examples/record_vllm_requests.py examples/vllm_cpu_requests_tight --requests 300 --rate 5 --seed 2 \
        --server-options "--max-num-seqs 6 --num-gpu-blocks-override 14 --max-model-len 1280"
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VOCABULARY = 2048
NAME = "qwen2-random-24m"
MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
OPTIONS = (
    "--load-format dummy --dtype float32 --enforce-eager --max-model-len 2048 --no-enable-prefix-caching "
    "--max-num-batched-tokens 256 --max-num-seqs 16"
)
START_S = 300
WARM_UP = 40
"""Requests before the recording: a server that has just begun is slower."""
PROMPT, OUTPUT = (100.0, 2.0, 4, 1000), (20.0, 2.0, 1, 200)
"""Tokens: median, factor within which two in three lie, least and most."""


def main() -> None:
    """Start a server, put the requests to it, and write down what came."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "prefix", type=Path, help="where the files go: PREFIX.jsonl.gz and PREFIX_steps.jsonl.gz"
    )
    parser.add_argument("--requests", type=int, default=1100)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server-options", default="", help="further options of vllm's server")
    options = parser.parse_args()
    lot = random.Random(options.seed)
    with TemporaryDirectory() as folder:
        log = Path(folder, "steps.jsonl")
        with server(Path(folder), log, options.server_options.split()) as port:
            pause = Path(f"{log}.pause")
            pause.touch()
            time.sleep(0.2)
            asyncio.run(put(port, planned(WARM_UP, options.rate, lot), lot))
            pause.unlink()
            time.sleep(0.2)
            requests = asyncio.run(put(port, planned(options.requests, options.rate, lot), lot))
            time.sleep(6.0)  # the side-car is renewed every five seconds
        prefix = str(options.prefix)
        pack("".join(f"{json.dumps(request)}\n" for request in requests).encode(), f"{prefix}.jsonl.gz")
        pack(b"".join(map(slim, log.read_bytes().splitlines())), f"{prefix}_steps.jsonl.gz")
        shutil.copyfile(f"{log}.meta.json", f"{prefix}_steps.jsonl.meta.json")


def slim(line: bytes) -> bytes:
    """Leave out of a step what follows from its chunk sizes: a tenth of the packed file."""
    step = json.loads(line)
    kept = {name: value for name, value in step.items() if not name.endswith("_chunk_size")}
    return json.dumps(kept, separators=(",", ":")).encode() + b"\n"


def pack(content: bytes, path: str) -> None:
    """Write a file of which nothing depends on the time of writing."""
    with Path(path).open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(content)


@contextlib.contextmanager
def server(folder: Path, log: Path, further: list[str]) -> Iterator[int]:
    """Start a server and give its port; kill it in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *OPTIONS.split(), *further]
    command += ["--model", str(write_model(folder / NAME)), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    environment = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    output = folder / "server.out"
    with output.open("w") as sink:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        wait_until_healthy(process, port, output)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def write_model(folder: Path) -> Path:
    """Write a model without weights, and a tokenizer that the server wants to see."""
    folder.mkdir()
    words = {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(VOCABULARY)}, "unk_token": "t0"}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": words,
    }
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content in (("config", MODEL), ("tokenizer", tokenizer), ("tokenizer_config", kind)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
    """Wait until the server answers.

    Raises
    ------
    SystemExit
        It does not, or has ended.
    """
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.5)
    sys.exit(f"the server does not answer; the end of what it said:\n{output.read_text()[-5000:]}")


def planned(num: int, rate_per_s: float, lot: random.Random) -> list[tuple[float, int, int]]:
    """Draw when each request comes, s, and its tokens: of the prompt, and wanted."""
    at_s, requests = 0.0, []
    for _ in range(num):
        at_s += lot.expovariate(rate_per_s)
        lengths = []
        for median, spread, least, most in (PROMPT, OUTPUT):
            drawn = lot.lognormvariate(math.log(median), math.log(spread))
            lengths.append(min(most, max(least, round(drawn))))
        requests.append((at_s, *lengths))
    return requests


async def put(port: int, requests: list[tuple[float, int, int]], lot: random.Random) -> list[dict[str, Any]]:
    """Put each request at its time, however the others fare; give what was measured, in their order."""
    import aiohttp

    prompts = [[lot.randrange(3, VOCABULARY) for _ in range(prompt)] for _, prompt, _ in requests]
    # A connection of its own for each: a server may close a kept one just as the next request is sent.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", connector=connector, timeout=timeout
    ) as session:
        begin = time.monotonic() + 0.5

        async def one(at_s: float, prompt: list[int], max_tokens: int) -> dict[str, Any]:
            await asyncio.sleep(begin + at_s - time.monotonic())
            return await measured(session, prompt, max_tokens)

        tasks = [
            one(at_s, prompt, wanted) for (at_s, _, wanted), prompt in zip(requests, prompts, strict=True)
        ]
        return list(await asyncio.gather(*tasks))


async def measured(session: Any, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """Put one request and take the time of its tokens as they come."""
    body = {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    arrival_s, start = time.time(), time.perf_counter()
    at_ms: list[float] = []
    usage: dict[str, int] = {}
    async with session.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"]:
                at_ms.append(1000.0 * (time.perf_counter() - start))
            usage = event.get("usage") or usage
    output = usage["completion_tokens"]
    return {
        "arrival_s": round(arrival_s, 6),
        "prompt_tokens": usage["prompt_tokens"],
        "output_tokens": output,
        "ttft_ms": round(at_ms[0], 3),
        "tpot_ms": round((at_ms[-1] - at_ms[0]) / (output - 1), 3) if output > 1 else None,
        "e2e_ms": round(at_ms[-1], 3),
    }


if __name__ == "__main__":
    main()
