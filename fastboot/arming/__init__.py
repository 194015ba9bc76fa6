"""Arming on the command line."""
