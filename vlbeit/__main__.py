"""`python -m vlbeit` is `vlbeit`."""

import sys

from vlbeit.cli import main

sys.exit(main())
