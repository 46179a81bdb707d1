"""Limits of latency that a posterior lets one promise, of steps and of requests, and how surely."""
