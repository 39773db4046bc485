"""Recipes: one YAML per row of a results table."""
