"""The benchmark: any number of runs on the same pairs, in one table, beside the published rows."""
