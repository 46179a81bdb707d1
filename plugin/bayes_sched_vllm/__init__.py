"""What of bayes-sched lives in vLLM's environment: a sub-package a purpose, and none imports another."""

__version__ = "0.1.0"
