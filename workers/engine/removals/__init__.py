"""Removals: one file for each kind of unit that is removed from a model."""
