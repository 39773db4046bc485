"""Image metrics, one idea a file."""
