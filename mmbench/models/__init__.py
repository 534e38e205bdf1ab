"""Recommenders, one file per model, each reading like its paper."""
