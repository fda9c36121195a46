"""Model: a model in memory, block by block, and measurements of it."""
