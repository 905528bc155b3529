"""The computation of `examples/01_map`, on pods of a Kubernetes cluster.

Files of this machine are not in the pods, so their texts travel: 30 MB through the executor's own Redis, which lives in
the cluster for as long as this program runs. Pods come at the start, and are gone at the end.

    docker build -f worker_image/Dockerfile -t ke-worker:1 .
    python examples/02_pods/main.py --image ke-worker:1 --pods 4
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import cloudpickle

from executor import KubeExecutor, Resources

FIRST_EXAMPLE = Path(__file__).parent.parent / "01_map" / "main.py"


def load(path: Path) -> ModuleType:
    """Import the first example, and have its functions travel with the calls: the image does not hold them."""
    spec = importlib.util.spec_from_file_location("measure_library", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="worker image, built from worker_image/")
    parser.add_argument("--pods", type=int, default=2, help="worker pods (default: 2)")
    parser.add_argument("--namespace", help="default: the context's")
    parser.add_argument("--limit", type=int, help="measure so many files only")
    options = parser.parse_args()

    library = load(FIRST_EXAMPLE)
    texts = [(path, (library.LIBRARY / path).read_bytes()) for path in library.source_files(options.limit)]
    begun = time.perf_counter()
    with KubeExecutor(
        options.pods, image=options.image, namespace=options.namespace, resources=Resources(cpu="100m", memory="512Mi")
    ) as ex:
        print(f"The executor {ex.name} is up after {time.perf_counter() - begun:.1f} s.")
        sources = list(ex.starmap(library.measure_text, texts, progress=True))
        print(f"All results are here after {time.perf_counter() - begun:.1f} s.")
    print(f"The pods are gone after {time.perf_counter() - begun:.1f} s.")

    library.show_table(library.by_package(sources))
    print(f"\nDigest of the answers: {library.digest(sources)}")


if __name__ == "__main__":
    main()
