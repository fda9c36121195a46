"""Code that goes into results. Nothing here imports it, nor is imported by it."""
