"""Getting raw files: over HTTP, out of archives, and pictures by their addresses."""
