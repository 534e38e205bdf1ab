"""Layouts of other toolboxes that a prepared dataset can be written in; one file each."""
