"""The command ``chmm``: fit, evaluate, decode and sample from files, and a demonstration."""

from .app import app, main

__all__ = ["app", "main"]
