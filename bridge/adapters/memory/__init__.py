"""The ports of the database in memory: for a log on stdout, and for tests of the core. May import the core only."""

from bridge.adapters.memory.directory import MemoryDirectory
from bridge.adapters.memory.lease import MemoryLease
from bridge.adapters.memory.revocations import MemoryRevocations
from bridge.adapters.memory.schedule import MemorySchedule
from bridge.adapters.memory.sessions import MemorySessions
from bridge.adapters.memory.store import MemoryStore

__all__ = [
    "MemoryDirectory",
    "MemoryLease",
    "MemoryRevocations",
    "MemorySchedule",
    "MemorySessions",
    "MemoryStore",
]
