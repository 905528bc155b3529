"""Count the primes below a bound with `Pool`, the drop-in for `multiprocessing.Pool`.

The same code runs over both: `--multiprocessing` takes the standard library's.

    python examples/04_pool/main.py
    python examples/04_pool/main.py --multiprocessing
"""

import argparse
import multiprocessing
import os
import time

from primes import count, prepare, primes_in, widest_gap

from executor import Pool

#: π(x), the number of primes up to x, for checking (OEIS A006880).
KNOWN = {10**4: 1_229, 10**5: 9_592, 10**6: 78_498, 10**7: 664_579, 10**8: 5_761_455}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--multiprocessing", action="store_true", help="use the standard library's Pool")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes")
    parser.add_argument("--limit", type=int, default=10**7, help="count the primes up to this number")
    options = parser.parse_args()
    pool_class = multiprocessing.Pool if options.multiprocessing else Pool
    step = max(1000, options.limit // 200)
    blocks = [(low, min(low + step, options.limit + 1)) for low in range(1, options.limit + 1, step)]

    begun = time.perf_counter()
    with pool_class(options.workers, initializer=prepare, initargs=(options.limit,)) as pool:
        last = pool.apply_async(primes_in, blocks[-1], callback=lambda primes: print(f"Last primes: {primes[-5:]}"))
        total = sum(pool.starmap(count, blocks))
        gap, low, high = max(pool.imap_unordered(widest_gap, blocks, chunksize=4))
        last.wait()
    seconds = time.perf_counter() - begun

    print(f"{total:,} primes up to {options.limit:,}, {len(blocks)} blocks, {seconds:.2f} s")
    print(f"The widest gap inside a block is {gap}, from {low:,} to {high:,}")
    if options.limit in KNOWN:
        print("The number is right." if total == KNOWN[options.limit] else f"WRONG: it is {KNOWN[options.limit]:,}")
    raise SystemExit(options.limit in KNOWN and total != KNOWN[options.limit])


if __name__ == "__main__":
    main()
