"""``python -m projcore``, and where the command ``projcore`` begins."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; an interrupt is one line, also while it is being imported."""
    try:
        from projcore import cli

        return cli.main()
    except KeyboardInterrupt:
        print("projcore: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
