"""Image metrics, one idea a file; `README.md` beside them has the formulas."""
