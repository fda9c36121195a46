"""Architectures: where blocks lie, what is coupled, and what transformers builds, as data. Import-light."""
