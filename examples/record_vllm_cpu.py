"""Record `vllm_cpu_context.jsonl.gz`: the steps of a real vLLM (CPU build) under a sweep of batch sizes.

A small model with random weights serves prompts of many lengths; the recorder writes down each step with the
context lengths. Run by the Python of an environment that holds vLLM and the plugin; about two minutes:

    $(sh scripts/_vllm_venv.sh) examples/record_vllm_cpu.py examples/vllm_cpu_context.jsonl.gz
"""

import argparse
import gc
import gzip
import json
import os
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VOCABULARY = 2048
NAME = "qwen2-random-3m"
MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Requests in flight, one level after the other in an order drawn by lot."""
SHARED_TOKENS = 256
"""One prompt in four begins with these tokens, as with a system prompt: the prefix cache holds them."""


def main() -> None:
    """Record, pack, and put the side-car beside."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="where the trace goes (.jsonl.gz); its side-car beside it")
    parser.add_argument("--steps", type=int, default=250, help="steps at each level (default 250)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        log = Path(folder, "steps.jsonl")
        os.environ |= {
            "ENABLE_SCHEDULER_PROFILING": "true",
            "SCHEDULER_PROFILING_LOG": str(log),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
        }
        engine = make_engine(Path(folder, NAME))
        drive(engine, num_steps=options.steps, lot=random.Random(options.seed))
        engine.engine_core.shutdown()
        del engine
        gc.collect()  # with the scheduler goes the recorder's writer, once it has written what is left
        trace = options.trace
        with log.open("rb") as lines, gzip.GzipFile(trace, "wb", compresslevel=9, mtime=0) as packed:
            shutil.copyfileobj(lines, packed)
        shutil.copyfile(f"{log}.meta.json", trace.with_suffix("").with_suffix(".jsonl.meta.json"))


def make_engine(folder: Path) -> Any:
    """Make an engine that runs in this process, with random weights."""
    from vllm import EngineArgs, LLMEngine

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    arguments = EngineArgs(
        model=str(folder),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=4096,
        max_num_seqs=max(LEVELS),
        max_num_batched_tokens=1024,
    )
    return LLMEngine.from_engine_args(arguments)


def drive(engine: Any, *, num_steps: int, lot: random.Random) -> None:
    """Keep as many requests in flight as the level says; in the last third of it, let them run out."""
    names = iter(range(10**9))
    for level in lot.sample(LEVELS, len(LEVELS)):
        for index in range(num_steps):
            is_filling = index < 2 * num_steps // 3
            if is_filling:
                # Not all at once: steps that mix prompts and decodes are those of a server in use.
                for _ in range(min(level - engine.get_num_unfinished_requests(), 1 + level // 4)):
                    add_request(engine, str(next(names)), lot)
            elif not engine.get_num_unfinished_requests():
                break
            engine.step()
        engine.abort_request([str(name) for name in range(next(names))])


def add_request(engine: Any, name: str, lot: random.Random) -> None:
    """Add a request: most prompts are short, some long; one in ten wants a single token."""
    from vllm import SamplingParams

    length = min(3500, max(1, int(lot.lognormvariate(5.0, 1.2))))
    prompt = [lot.randrange(3, VOCABULARY) for _ in range(length)]
    if lot.random() < 0.25:
        prompt[:0] = range(3, 3 + SHARED_TOKENS)
    max_tokens = 1 if lot.random() < 0.1 else max(2, int(lot.lognormvariate(3.8, 0.8)))
    params = SamplingParams(max_tokens=min(max_tokens, 300), ignore_eos=True, detokenize=False)
    engine.add_request(name, {"prompt_token_ids": prompt}, params)


if __name__ == "__main__":
    main()
