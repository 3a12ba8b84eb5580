"""What clients say: a file for each of their frames, and `hearing`, which passes each frame to its own.

May import what decides on delivery, and what is below it. Must not know what carries a frame.
"""
