"""The service: sends chains of tasks with stock Celery, waits for them, writes the picture.

It runs as a process of its own. Each finished band is one line of JSON on its standard output.
"""

import json
import sys
from pathlib import Path

from celery import chain
from shop.tasks import BAND, HEIGHT, app, render, shrink


def main() -> None:
    bands = min(int(sys.argv[1]), HEIGHT // BAND)
    waiting = [chain(render.s(band), shrink.s()).apply_async(priority=band % 10) for band in range(bands)]
    pictures = []
    for result in waiting:
        picture = result.get(timeout=120)
        pictures.append(picture)
        print(json.dumps({name: picture[name] for name in ("band", "pid", "worker")}), flush=True)
    save([row for picture in pictures for row in picture["rows"]], Path(sys.argv[2]))
    app.close()


def save(rows: list[list[int]], path: Path) -> None:
    """A grey picture in the portable graymap format."""
    path.parent.mkdir(exist_ok=True)
    head = f"P5 {len(rows[0])} {len(rows)} 255\n".encode()
    path.write_bytes(head + b"".join(bytes(255 - min(255, value) for value in row) for row in rows))


if __name__ == "__main__":
    main()
