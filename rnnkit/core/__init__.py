"""What everything else stands on: the cells, dtypes, devices, checks of arguments, threads."""
