"""Run by the Python of vLLM's environment: the offline `LLM` class in this process, prompts of given sizes.

usage: offline.py MODEL MAX_TOKENS PROMPT_LENGTH...  [-- MAX_TOKENS PROMPT_LENGTH...]
Prints the number of tokens that each request got, one list a round.
"""

import json
import os
import sys
import time


def main() -> None:
    """Generate, one round after the other."""
    from vllm import LLM, SamplingParams

    model, *rest = sys.argv[1:]
    llm = LLM(
        model=model,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=2048,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        enable_prefix_caching=True,
    )
    rounds = " ".join(rest).split(" -- ")
    for index, sizes in enumerate(rounds):
        max_tokens, *lengths = map(int, sizes.split())
        if index and "LATE_FAULT" in os.environ:
            with open(os.environ["FAULT"], "w") as file:
                file.write(os.environ["LATE_FAULT"])
        # Prompts of one beginning: what is computed once is found in the cache.
        prompts = [{"prompt_token_ids": [3 + i % 500 for i in range(length)]} for length in lengths]
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        print("ANSWERS", json.dumps([len(output.outputs[0].token_ids) for output in outputs]), flush=True)
    time.sleep(1)  # for the side-car of an engine that switched itself off


if __name__ == "__main__":
    main()
