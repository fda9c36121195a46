"""What `families.json` is made of: families built on the meta device in sizes that tell their axes apart."""
