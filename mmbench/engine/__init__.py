"""The training and evaluation engine, one for every model."""
