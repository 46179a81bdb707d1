"""Servers that borrow strength from each other: a population, its members, and the prior of the next one."""
