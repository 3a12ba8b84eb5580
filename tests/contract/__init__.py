"""Schemas and bytes that others write against; and one suite for each port, for its fake and for the real thing."""
