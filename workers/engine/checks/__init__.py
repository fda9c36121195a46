"""Checks: the result computes what was pruned and tuned, and keeps the spec's bounds."""
