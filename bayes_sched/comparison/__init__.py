"""Which of several servers is faster, by how much, and how sure one may be."""
