"""Dataset sources, cleaning, splits, and the prepared dataset."""
