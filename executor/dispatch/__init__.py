"""Calls out, futures home: lanes, batches, the ledger and the loop thread."""
