#!/usr/bin/env python3
"""Write what the emulator needs to look like each board.

    boards.py BOARDS_DIR OUT_DIR

For every BOARDS_DIR/NAME.toml: OUT_DIR/NAME/cpu, the name of qemu's CPU model, and
OUT_DIR/NAME/proc/cpuinfo, which a program run with `qemu-aarch64 -L OUT_DIR/NAME` reads in place of the
host's. Needs Python 3.11 (tomllib).
"""

import sys
import tomllib
from pathlib import Path

ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")


def cpuinfo(cpu):
    """/proc/cpuinfo as Linux prints it on arm64: one block a core."""
    block = f"""\
BogoMIPS\t: 108.00
Features\t: {" ".join(cpu["features"])}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {cpu["part"]}
CPU revision\t: 3
"""
    return "".join(f"processor\t: {core}\n{block}\n" for core in range(cpu["cores"]))


def write_overlay(profile, folder):
    cpu = tomllib.loads(profile.read_text(encoding="utf-8"))["cpu"]
    (folder / "proc").mkdir(parents=True, exist_ok=True)
    (folder / "proc" / "cpuinfo").write_text(cpuinfo(cpu), encoding="ascii")
    (folder / "cpu").write_text(cpu["core"] + "\n", encoding="ascii")
    library = folder / "lib"
    if not library.is_symlink():
        library.symlink_to(ARM_LIBRARIES)


def main():
    boards, out = map(Path, sys.argv[1:])
    for profile in sorted(boards.glob("*.toml")):
        write_overlay(profile, out / profile.stem)


if __name__ == "__main__":
    main()
