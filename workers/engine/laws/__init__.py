"""Laws that every method of a stage keeps, as tests to inherit: ours run them, and so do packages with methods of
their own (docs/extending.md). They need pytest, which users of methods do not have."""
