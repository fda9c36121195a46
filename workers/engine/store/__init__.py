"""Store: what is kept on disk between attempts and jobs."""
