"""Architectures, as data: names of blocks, coupled slices, and the tensors that transformers builds. Import-light."""
