"""Capacity: who starts, watches and ends workers."""
