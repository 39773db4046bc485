"""The backend of procedural heads: a small network that reads landmarks and pose off them, and how it was trained."""
