"""Numbers that were really measured, each with the command that made it."""
