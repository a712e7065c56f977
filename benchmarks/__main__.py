"""`make bench`: run every benchmark, or those named. `make bench ARGS="engine quality"`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "engine",
    "bundle",
    "audit_append",
    "audit_verify",
    "quality",
    "evaluation",
    "serving",
    "policies",
    "private_training",
    "private_utility",
    "pruning",
    "admission",
    "quota",
    "extraction",
    "watermark",
)


def main() -> int:
    """Each in a process of its own, one after the other."""
    wanted = sys.argv[1:] or list(NAMES)
    unknown = set(wanted) - set(NAMES)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    files = [Path(__file__).with_name(f"{name}.py") for name in wanted]
    return max(subprocess.run([sys.executable, str(file)], check=False).returncode for file in files)


if __name__ == "__main__":
    sys.exit(main())
