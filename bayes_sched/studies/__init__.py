"""Studies that hold what the package says against held-out data and simulated servers."""
