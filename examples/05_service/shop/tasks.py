"""The shop's Celery app and its tasks, as they would be written for any Celery worker."""

import os

from celery import Celery

SERVER = os.environ.get("SHOP_REDIS_URL", "redis://localhost:6379/0")

app = Celery("shop", broker=SERVER, backend=SERVER)
app.conf.update(
    task_routes={"shop.tasks.render": {"queue": "render"}, "shop.tasks.shrink": {"queue": "thumbs"}},
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
)

#: Of the whole picture, in pixels; and rows in one band, which is one task.
WIDTH, HEIGHT, BAND = 480, 320, 8


def escape(c: complex, most: int = 200) -> int:
    """Steps until z² + c runs away: the brightness of one pixel of the Mandelbrot set."""
    z = 0j
    for step in range(most):
        if abs(z) > 2:
            return step
        z = z * z + c
    return most


@app.task
def render(band: int) -> dict:
    """One band of the picture, as rows of brightness; runs in the queue `render`."""
    tops = range(band * BAND, min((band + 1) * BAND, HEIGHT))
    rows = [[escape(complex(3 * x / WIDTH - 2.2, 2 * y / HEIGHT - 1)) for x in range(WIDTH)] for y in tops]
    return {"band": band, "rows": rows, "pid": os.getpid(), "worker": os.getppid()}


@app.task
def shrink(picture: dict) -> dict:
    """The same at half the size; runs in the queue `thumbs`."""
    rows = [[(a + b) // 2 for a, b in zip(row[::2], row[1::2], strict=True)] for row in picture["rows"][::2]]
    return {**picture, "rows": rows}
