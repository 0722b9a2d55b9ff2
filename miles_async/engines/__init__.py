"""Engines of every kind, and how to speak to one."""
