"""From the files a vLLM scheduler left to a clean table of steps, and what it shows without a model."""
