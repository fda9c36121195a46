"""Removals: what is taken out of a model, and how."""
