"""Contracts: what methods may import. Import-light."""
