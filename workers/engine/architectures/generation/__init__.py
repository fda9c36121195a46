"""The content of `families.json`: families built on the meta device in sizes that tell their axes apart."""
