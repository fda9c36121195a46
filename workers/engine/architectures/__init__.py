"""Architectures: where the blocks of a model are, what is coupled, and what transformers builds, as data. Import-light."""
