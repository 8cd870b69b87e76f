"""The lesson's sampling script: `ddpm sample` with the lesson's option names."""

import sys

from ddpm.lesson import sample_main

if __name__ == "__main__":
    sys.exit(sample_main())
