"""Docs, samples, benches and faults are what they say."""
