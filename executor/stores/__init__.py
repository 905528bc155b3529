"""Large values: blob stores, and what moves the large parts of a value into one."""
