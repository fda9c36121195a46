"""The engine: spec in, smaller model and report out."""

DISTRIBUTION = "espalier-llm"
"""Our name among installed packages, as pyproject.toml has it; `espalier` on PyPI is somebody else's."""
