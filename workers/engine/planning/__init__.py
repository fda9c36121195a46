"""Planning: predict a job and its result from a model's config and weight headers."""
