"""A fit compiled to tables that a scheduler can ask: microseconds a step, numpy alone."""
