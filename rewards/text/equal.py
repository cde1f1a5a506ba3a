"""What the reward `math` runs in a process of its own: lines [gold, completion, seconds] in, true or false out."""

import json
import logging
import resource
import sys
from contextlib import suppress

MEMORY = 4 * 2**30  # bytes; an answer such as 9**9**9 takes all there is


def texts(gold: str) -> list[str]:
    """Ways to read a reference answer: as mathematics even where no dollar signs say so, else as it is."""
    return [gold] if "$" in gold or "\\boxed" in gold or "\\(" in gold else [f"${gold}$", gold]


def main() -> None:
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify  # type: ignore[import-not-found]  # an extra

    with suppress(ValueError, OSError):  # a system that does not know this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        gold, completion, seconds = json.loads(line)
        try:
            wanted = next((found for text in texts(gold) if (found := parse(text, parsing_timeout=seconds))), [])
            right = bool(wanted) and verify(wanted, parse(completion, parsing_timeout=seconds), timeout_seconds=seconds)
        except Exception:
            right = False
        print(json.dumps(bool(right)), flush=True)


if __name__ == "__main__":
    main()
