"""The base of the other packages: cells, dtypes, devices, argument checks, threads."""
