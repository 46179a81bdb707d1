"""A PyTensor graph becomes one function of machine code, which serves other data without compiling again."""
