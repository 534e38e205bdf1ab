"""Dataset sources: one file per layout of files, per dataset, or per family of datasets."""
