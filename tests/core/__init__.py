"""The core alone, with ports in memory and the clock in the test's hands."""
