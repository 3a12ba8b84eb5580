"""How a wheel is built: a hook of hatchling, and what compiles the core."""
