"""Steps to a fitted model: sampling, the convergence gate, predictions, the file."""
