"""`bridge db`: upgrade, show and grant the schema of the delivery log."""

from __future__ import annotations

from bridge.config import CommonSettings


def db_upgrade(settings: CommonSettings) -> int:
    """Apply the missing migrations and name them."""
    from bridge.adapters.postgres import migrate

    applied = migrate.upgrade(settings.postgres_dsn)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        version = max(line.version for line in migrate.status(settings.postgres_dsn))
        newer = version > migrate.WANTED_VERSION
        print(f"nothing to do: {migrate.ahead(version) if newer else f'the schema is at version {version}'}")
    return 0


def db_status(settings: CommonSettings) -> int:
    """Print every migration; 1 if one is missing."""
    from bridge.adapters.postgres import migrate

    lines = migrate.status(settings.postgres_dsn)
    for line in lines:
        when = (
            "still to be applied"
            if line.applied_at is None
            else f"applied {line.applied_at:%Y-%m-%d %H:%M:%S %Z}"
        ) + ("" if line.known else ", by a newer program")
        print(f"{line.name:<40} {when}")
    return 1 if any(line.applied_at is None for line in lines) else 0


def db_sql(settings: CommonSettings, *, everything: bool) -> int:
    """Print the SQL of the missing migrations, or of all."""
    from bridge.adapters.postgres import migrate

    print(migrate.pending_sql(None if everything else settings.postgres_dsn), end="")
    return 0


def db_grant(settings: CommonSettings, role: str) -> int:
    """Grant a role what `bridge serve` needs, and print the statements."""
    from bridge.adapters.postgres import rights as postgres_rights

    for statement in postgres_rights.grant(settings.postgres_dsn, role):
        print(f"{statement};")
    return 0
