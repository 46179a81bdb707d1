"""Settings with the most throughput, servers for a workload, budgets for the next step."""
