"""`python -m edgeprune.cli` is the same program as `edgeprune`."""

import sys

from edgeprune.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
