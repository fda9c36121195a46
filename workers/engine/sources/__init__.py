"""Sources: find models and texts, in folders of the service or on the hub. Import-light."""
