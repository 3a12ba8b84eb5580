"""The shell: everything that speaks to a broker, a database, a socket or a terminal."""
