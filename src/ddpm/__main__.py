"""`python -m ddpm` is `ddpm`."""

import sys

from ddpm.cli import main

sys.exit(main())
