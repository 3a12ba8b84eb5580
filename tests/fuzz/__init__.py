"""Seeded chance, at every door."""
