"""What `python -m vlmft.validate` is made of: samples examined in processes of their own, counted and shown."""
