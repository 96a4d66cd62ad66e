"""Packs what YARN's nodes need to run Drivetrain: Python with its packages, the application, Spark's jars, PySpark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from drivetrain import package
from drivetrain.errors import DrivetrainError

ROOT: Final = Path(__file__).resolve().parents[1]
SHOWN: Final = 10
MB: Final = 1_000_000


def show(path: Path) -> None:
    """The archive's path and size, what fills it, and what it asks of a node."""
    print(f"{path}  {path.stat().st_size / MB:.1f} MB")
    found = package.contents(path)
    largest = sorted(found.groups.items(), key=lambda group: -group[1][1])
    rest = [sizes for _, sizes in largest[SHOWN:]]
    others = [(f"{len(rest)} others", [sum(column) for column in zip(*rest, strict=True)])] if rest else []
    for name, (size, packed) in [*largest[:SHOWN], *others]:
        print(f"  {packed / MB:8.1f} MB  {name} ({size / MB:.1f} MB unpacked)")
    if found.glibc:
        print(f"  runs where glibc is 2.{found.glibc} or newer")


def main() -> int:
    parser = argparse.ArgumentParser("scripts/package", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--java", action="store_true", help="pack the Java runtime found here too, for nodes without 17"
    )
    parser.add_argument("--conf-dir", type=Path, default=ROOT / "conf", help="the pipeline's folder (default: conf)")
    parser.add_argument("--out", type=Path, help="where the archives go (default: .drivetrain/package)")
    given = parser.parse_args()
    try:
        made = package.build(ROOT, given.home, given.conf_dir, java=given.java, out=given.out)
    except DrivetrainError as error:
        print(f"drivetrain: {error}", file=sys.stderr)
        return 2
    for path in made:
        show(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
