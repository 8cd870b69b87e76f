"""The training path as the published lesson spells it; the same as training/image/mnist/train.py."""

import sys

from ddpm.lesson import train_main

if __name__ == "__main__":
    sys.exit(train_main())
