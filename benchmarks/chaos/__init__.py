"""A machine that tries to break the promises: load, faults, and a checker that believes only what it saw."""
