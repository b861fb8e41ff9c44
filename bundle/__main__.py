"""`python -m bundle COMMAND`."""

import sys

from bundle.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
