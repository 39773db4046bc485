"""One thin file for each subcommand of `memcomp`: its arguments, their checks, and one call of the work."""
