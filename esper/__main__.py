"""`python -m esper`."""

import sys

from esper.cli.main import main

sys.exit(main())
