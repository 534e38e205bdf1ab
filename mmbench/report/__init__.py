"""Leaderboards: reads runs, compares them, and prints tables."""
