"""What the model will see of samples, as a page: the pictures after all that is done to them, the tokens, the mask."""

MAKER = "vlmft.preview"
"""Named in every such page: a file that lacks it is never overwritten."""
