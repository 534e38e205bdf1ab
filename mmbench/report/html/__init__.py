"""The report: one self-contained page of a comparison, and its figures and tables as files."""
