"""Small recipes for two CPU cores, on procedural heads."""
