"""Whether promises are kept: on steps held out of real traces, and by simulated servers of known truth."""
