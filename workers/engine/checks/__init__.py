"""Checks: whether a result is what was walked, tuned and promised."""
