"""Encoders of item texts and pictures, one file per encoder."""
