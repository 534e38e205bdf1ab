"""Ranking metrics: ranked lists in, one value per user out."""
