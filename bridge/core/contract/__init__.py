"""Bytes to model and back: requests, frames, receipts and control messages, as `schemas/` says. Pure.

May import ports and model. Must not know of pushes on their way.
"""
