"""Store: what is kept on disk between attempts and jobs, and where a result comes from."""
