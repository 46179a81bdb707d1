"""The profiler in a real vLLM: needs an environment of its own (scripts/_vllm_venv.sh)."""
