"""Postgres: the delivery log, its schema and its upkeep. Only this package and `bridge.operator` know psycopg."""
