"""Model: a model in memory, block by block, and what is measured of it."""
