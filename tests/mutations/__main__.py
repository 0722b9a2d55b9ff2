"""``python -m tests.mutations [NAME...] [--json]``: plant each bug in a copy of the tree and see its tests fail.

A name is a mutation's, a part of one, or the number of an invariant. The exit code is 1 where a bug survives, its text is not
in the tree any more, or a test does not pass without any bug.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.mutations.catalogue import DoesNotApply, Mutation, load
from tests.mutations.copies import Copy

JOBS = 2
ALL_TESTS_LIMIT_S = 1800.0


def verdict(mutation: Mutation, copy: Copy) -> dict[str, Any]:
    """What became of one planted bug: "killed", or why not."""
    started = time.monotonic()
    try:
        outcome = copy.with_mutation(mutation)
    except DoesNotApply as error:
        result, why = "DOES NOT APPLY", str(error)
    else:
        passed = [test for test in mutation.tests if "failed" not in outcome.verdicts.get(test, ())]
        result = "BROKEN" if outcome.trouble else "SURVIVED" if passed else "killed"
        why = outcome.trouble or ", ".join(passed)
        if any("error" in outcome.verdicts.get(test, ()) for test in passed):
            result = "BROKEN"  # a fixture failed: that shows nothing
        why += f"\n{outcome.output[-3000:]}" if result == "BROKEN" else ""
    return {
        "mutation": mutation.name,
        "invariant": mutation.invariant,
        "result": result,
        "seconds": round(time.monotonic() - started, 1),
        "why": why,
    }


def check_unmutated(mutations: Sequence[Mutation], copy: Copy) -> dict[str, str]:
    """The tests that do not pass without any bug, and what they came to. Raises RuntimeError if they cannot be run."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    outcome = copy.run(tests, ALL_TESTS_LIMIT_S)
    if outcome.trouble:
        raise RuntimeError(f"without any bug: {outcome.trouble}\n{outcome.output[-3000:]}")
    verdicts = {test: outcome.verdicts.get(test, {"not run"}) for test in tests}
    return {test: ", ".join(sorted(found)) for test, found in verdicts.items() if found != {"passed"}}


def plant_all(mutations: Sequence[Mutation], directory: Path, report: Any) -> list[dict[str, Any]]:
    """The verdict on each bug. Where a test fails without it, too, nothing can be said."""
    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(JOBS):
        copies.put(Copy(directory / f"copy-{number}"))
    copy = copies.get()
    failing = check_unmutated(mutations, copy)
    copies.put(copy)

    def one(mutation: Mutation) -> dict[str, Any]:
        copy = copies.get()
        try:
            row = verdict(mutation, copy)
        finally:
            copies.put(copy)
        if unsound := failing.keys() & set(mutation.tests):
            row |= {"result": "UNSOUND", "why": f"does not pass without the bug: {', '.join(sorted(unsound))}"}
        report(row)
        return row

    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(one, mutations))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one document")
    parser.add_argument("--list", action="store_true", help="only say which mutations there are")
    options = parser.parse_args(arguments)
    mutations = [
        m for m in load() if not options.names or any(n in m.name or n == str(m.invariant) for n in options.names)
    ]
    if not mutations:
        parser.error(f"no mutation is called {' or '.join(options.names)}")
    if options.list:
        print("\n".join(f"{m.invariant:2}  {m.name}: {m.breaks}" for m in mutations))
        return 0

    def show(row: dict[str, Any]) -> None:
        if not options.json:
            line = f"{row['mutation']:44} {row['invariant']:9} {row['result']:14} {row['seconds']:6.1f}"
            print(f"{line}  {row['why']}".rstrip(), flush=True)

    started = time.monotonic()
    if not options.json:
        print(f"{'mutation':44} {'invariant':9} {'result':14} {'s':>6}", flush=True)
    with tempfile.TemporaryDirectory(prefix="miles-mutations-") as directory:
        rows = plant_all(mutations, Path(directory).resolve(), show)
    seconds = round(time.monotonic() - started, 1)
    killed = sum(row["result"] == "killed" for row in rows)
    if options.json:
        print(json.dumps({"seconds": seconds, "killed": killed, "mutations": rows}, indent=1))
    else:
        print(f"{killed} of {len(mutations)} killed in {seconds:.0f} s")
    return 0 if killed == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main())
