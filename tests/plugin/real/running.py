"""Starts a real vLLM with the recorder in it, and puts requests to it."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulated_engine import MODEL

HERE = Path(__file__).resolve().parent
START_S = 240
VALIDATE = """
import json, sys
from importlib.resources import files
from jsonschema import Draft202012Validator
schema = json.loads(files("bayes_sched_vllm.recorder").joinpath("step.schema.json").read_text())
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator({**schema, "additionalProperties": False})
lines = [line for name in sys.argv[1:] for line in open(name)]
for line in lines:
    validator.validate(json.loads(line))
print(len(lines))
"""
"""Run by the Python of vLLM's environment, which has jsonschema."""


def write_model(folder: Path) -> Path:
    """Write a tiny model without weights, and a tokenizer that the server wants to see."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL))
    vocabulary = {f"t{i}": i for i in range(MODEL["vocab_size"])}
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    spaces = {"type": "Whitespace"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": spaces, "model": words}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def write_plugin(folder: Path) -> Path:
    """Make the tests' own plugin one that vLLM finds: a module and its entry point on a path."""
    metadata = folder / "tests_faults-0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "tests_faults.py").write_text((HERE / "faults.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tests-faults\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\ntests_faults = tests_faults:register\n"
    )
    return folder


@dataclass(frozen=True)
class Place:
    """Where a vLLM runs: its Python, the model, the log, and what the tests' plugin writes and reads."""

    python: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "tiny-model"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "steps.jsonl"

    @property
    def fault(self) -> Path:
        """What injects a fault."""
        return self.folder / "fault"

    @property
    def truth(self) -> list[tuple[int, float, int, int]]:
        """Process, Unix time, tokens and requests of each step, as the tests' own plugin saw them."""
        lines = (self.folder / "truth").read_text().splitlines()
        return [(int(a), float(b), int(c), int(d)) for a, b, c, d in map(str.split, lines)]

    @classmethod
    def make(cls, python: str, folder: Path) -> "Place":
        """Make the folder with the model and the plugin in it."""
        place = cls(python, folder)
        write_model(place.model)
        write_plugin(folder / "plugin")
        return place

    def environment(self, **changes: str) -> dict[str, str]:
        """Give the environment of a vLLM that is profiled and keeps to itself."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        return kept | {
            "PYTHONPATH": str(self.folder / "plugin"),
            "TRUTH": str(self.folder / "truth"),
            "FAULT": str(self.fault),
            "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
            "VLLM_SCHEDULER_PROFILING_LOG": str(self.log),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            **changes,
        }

    def run_offline(self, *sizes: object, **environment: str) -> list[list[int]]:
        """Run `offline.py` and give its answers, one list a round."""
        command = [self.python, str(HERE / "offline.py"), str(self.model), *map(str, sizes)]
        done = subprocess.run(
            command,
            env=self.environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        (self.folder / "offline.out").write_text(done.stdout + done.stderr)
        return [json.loads(line[8:]) for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]

    def validate(self, *logs: Path) -> int:
        """Hold every line against the schema and give their number."""
        command = [self.python, "-c", VALIDATE, *map(str, logs)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout)


class Server:
    """An OpenAI-compatible server on 127.0.0.1; `environment` is on top of the place's."""

    def __init__(self, place: Place, **environment: str) -> None:
        self.place = place
        self.output = place.folder / "server.out"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        options = (
            "--served-model-name tiny --load-format dummy --dtype float32 --enforce-eager --max-num-seqs 32 "
            f"--max-model-len 2048 --max-num-batched-tokens 512 --host 127.0.0.1 --port {self._port}"
        )
        command = [place.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place.model)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *options.split()],
                env=place.environment(**environment),
                cwd=place.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_healthy()

    def _wait_until_healthy(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.output.read_text()[-5000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise AssertionError(f"no server within {START_S} s: {self.output.read_text()[-5000:]}")

    def complete(self, prompt_tokens: int, max_tokens: int) -> int:
        """Put one request and give the number of tokens that came."""
        # Each prompt begins in its own way: nothing of it is in the cache.
        prompt = [random.randrange(3, MODEL["vocab_size"]) for _ in range(prompt_tokens)]
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: dict[str, Any] = json.load(response)
        return int(answer["usage"]["completion_tokens"])

    def serve(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Put requests all at once; every one of them must be answered in full."""
        with ThreadPoolExecutor(len(sizes)) as pool:
            answers = list(pool.map(lambda size: self.complete(*size), sizes))
        assert answers == [max_tokens for _, max_tokens in sizes]

    def load_in_background(self, count: int) -> None:
        """Put long requests whose answers nobody waits for."""
        pool = ThreadPoolExecutor(count)
        for _ in range(count):
            pool.submit(self.complete, 100, 1500)
        pool.shutdown(wait=False)

    @property
    def engine_pid(self) -> int:
        """Process of the engine: the one that writes down the truth."""
        return self.place.truth[-1][0]

    def end(self) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
