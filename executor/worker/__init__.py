"""What runs in the pod: a stock Celery worker whose pool is child processes of ours, and those children.

::

    Redis ─► transport ─► CallRequest ─► Crew ─► pipe ─► child: Runner ─► user's function
               (hub thread)               │                    │
    Redis ◄─ Settler ◄──── (crew thread) ─┴──────── pipe ◄─────┘
    Redis ◄► Lease (lease thread)

:mod:`~executor.worker.child` and what it imports (``runner``, ``outbox``, ``pipe``, ``slots``) know neither Celery
nor Redis: a child starts in some 40 ms.
"""
