"""Studies: which runs are made, and how they are compared."""
