"""The modalities, in the order in which recipes, models and tables name them."""

MODALITIES = ("visual", "textual", "acoustic", "joint")
"""`joint` is one vector of picture and text together, as a single-stream encoder makes it."""
