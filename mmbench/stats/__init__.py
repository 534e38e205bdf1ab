"""Statistics: arrays in; tests, effects and intervals out."""
