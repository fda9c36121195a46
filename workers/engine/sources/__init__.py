"""Sources: where models and texts come from, as files. Import-light."""
