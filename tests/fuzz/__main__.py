"""`python -m tests.fuzz TARGET --runs 200000`: inputs that follow the code's branches (atheris).

A crash of the interpreter, an error that a reader must not raise, more than 2 GB, or more than 20 s
for one input end it with the input that did it.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mistjax", "pickletools", "zipfile", "json"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    target = TARGETS[given.target]
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name) / "folder", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        wholes = target.wholes(folder)
        rng = random.Random(given.seed)
        for number in range(max(50, len(wholes))):
            changed = number >= len(wholes)
            data = target.mutated(wholes, rng) if changed else wholes[number]
            (corpus / str(number)).write_bytes(data)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            draw = random.Random(seed)
            if draw.random() < 0.5:
                return atheris.Mutate(data, most)
            return target.mutated(wholes, draw)[:most]

        largest = max(map(len, wholes))
        options = [f"-runs={given.runs}", f"-seed={given.seed}", f"-max_len={2 * largest + 64}"]
        options += ["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1", "-verbosity=1"]
        options += [f"-artifact_prefix={Path.cwd()}/"]
        atheris.Setup(
            [sys.argv[0], *options, str(corpus)],
            lambda data: target.check(folder, data),
            custom_mutator=mutate,
        )
        atheris.Fuzz()


main()
