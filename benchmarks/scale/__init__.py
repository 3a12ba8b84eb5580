"""What a number of sessions and pushes a second would take: a small simulation with measured costs."""
