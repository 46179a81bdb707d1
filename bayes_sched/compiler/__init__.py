"""A PyTensor graph becomes one function of machine code: lean loops, nothing compiled again for other data."""
