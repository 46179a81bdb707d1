"""The saturation equation, its priors and likelihood, and what a model file must offer."""
