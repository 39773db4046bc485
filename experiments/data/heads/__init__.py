"""Procedural talking heads: seeded identities, smooth clips, exact landmarks, depth, labels and disocclusion."""
