"""Where the blocks of a model are and what is coupled, per family: data, no algorithm. Import-light."""
