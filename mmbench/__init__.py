"""mmbench: does multimodality improve recommendation? A benchmarking toolkit."""
