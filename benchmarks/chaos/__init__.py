"""Fault injection that tests the promises: load, faults, and a checker that does not trust the bridge."""
