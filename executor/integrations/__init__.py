"""The executor inside other libraries."""
