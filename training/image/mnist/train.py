"""The lesson's training script: `ddpm train` with the lesson's option names."""

import sys

from ddpm.lesson import train_main

if __name__ == "__main__":
    sys.exit(train_main())
