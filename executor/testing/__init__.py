"""For tests of code that uses an executor."""
