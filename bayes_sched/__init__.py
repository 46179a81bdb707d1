"""Bayesian latency models for LLM schedulers: from a vLLM step trace to latency bands and probabilities.

>>> import bayes_sched
>>> trace = bayes_sched.read_trace("trace.jsonl")
>>> result = bayes_sched.fit(trace)
>>> result.fit.predictive_band(bayes_sched.steps_arrays([8, 64], [8, 64]), probability=0.9)

Names are loaded when they are first used, so that the import itself takes no time.
"""

import lazy_loader

from bayes_sched.files import VERSION as __version__  # noqa: F401

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
