"""Planning: what a job would do and make, from a model's config and headers alone."""
