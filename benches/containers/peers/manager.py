"""A dictionary of multiprocessing's Manager, on the work of ../src/maps.rs.

    manager.py BENCH WORKERS

prints the seconds that the work took, how many operations it was, and the seconds again: a
client waits for the manager's process, so the processor's seconds of one of them say nothing.
"""

import multiprocessing
import sys
import time

KEYS = 100_000
OPERATIONS = 3_000


def get(table, key):
    table[key]


def put(table, key):
    table[key] = key


# The keys of `table_insert` are new, those of the others all there.
BENCHES = {"table_get": (get, KEYS), "table_replace": (put, KEYS), "table_insert": (put, 0)}


def work(bench, table, me, workers, gate, outcomes):
    operation, _ = BENCHES[bench]
    at = me * (KEYS // 2)
    operation_on_first = KEYS + me
    put(table, operation_on_first)  # connects
    gate.wait()
    begun = time.monotonic()
    for _ in range(OPERATIONS):
        operation(table, at)
        at = (at + 7919) % KEYS
    outcomes.put((begun, time.monotonic()))


def main():
    bench, workers = sys.argv[1], int(sys.argv[2])
    with multiprocessing.Manager() as manager:
        table = manager.dict({key: key for key in range(BENCHES[bench][1])})
        gate, outcomes = multiprocessing.Barrier(workers), multiprocessing.Queue()
        crew = [
            multiprocessing.Process(target=work, args=(bench, table, me, workers, gate, outcomes))
            for me in range(workers)
        ]
        for worker in crew:
            worker.start()
        times = [outcomes.get() for _ in crew]
        for worker in crew:
            worker.join()
    seconds = max(ended for _, ended in times) - min(begun for begun, _ in times)
    print(seconds, OPERATIONS * workers, seconds)


if __name__ == "__main__":
    main()
