"""Leases on the command line."""
