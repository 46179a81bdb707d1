"""Whether a fit holds: leave-one-out, discrepancy, physics, proper scores, least squares beside it."""
