"""memcomp: a learned facial memory for talking-head generators."""
