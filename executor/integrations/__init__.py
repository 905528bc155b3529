"""The executor inside other libraries, and what shows its progress."""
