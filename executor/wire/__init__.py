"""Bytes: frames, signatures, pickles, envelopes. No I/O."""
