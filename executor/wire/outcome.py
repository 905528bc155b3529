"""One call's outcome as bytes: a status byte, then what the status says.

======  ==========  =====================================================================
status  name        bytes
======  ==========  =====================================================================
``v``   value       pickle of the value
``e``   exception   segments: pickle of the exception, traceback text in UTF-8
``x``   error       JSON ``{"type", "message", "details"}``: a CallError named by us
``c``   cancelled   nothing: the call did not run and never will
======  ==========  =====================================================================

This file only splits and joins; :mod:`executor.wire.pickling` opens pickles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from executor.errors import CallError, RemoteTraceback, call_error
from executor.wire import segments

VALUE, EXCEPTION, ERROR, CANCELLED = b"v", b"e", b"x", b"c"


def exception(pickled: bytes, traceback: str) -> bytes:
    """A user's exception."""
    return EXCEPTION + segments.join([pickled, traceback.encode("utf-8", "backslashreplace")])


def exception_parts(body: bytes | memoryview) -> tuple[memoryview, str]:
    """The pickle of a user's exception, and its traceback; ``body`` is without the status byte."""
    pickled, traceback = segments.split(body)
    return pickled, str(traceback, "utf-8")


def error(name: str, message: str, details: Mapping[str, Any] | None = None) -> bytes:
    """An error of ours: ``name`` is a class of :mod:`executor.errors`."""
    return ERROR + json.dumps({"type": name, "message": message, "details": dict(details or {})}).encode()


def error_from(body: bytes | memoryview) -> CallError:
    """The exception that :func:`error` described; ``body`` is without the status byte.

    Where it stands for an exception of the user's, that one's traceback is its ``__cause__``.
    """
    fields = json.loads(bytes(body))
    described = call_error(fields["type"], fields["message"], fields.get("details"))
    if isinstance(text := described.details.get("traceback"), str):
        described.__cause__ = RemoteTraceback(text)
    return described
