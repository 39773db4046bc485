"""Recipes: the sections and their defaults, the strict reader of plain data, the checks, and loading from YAML."""
