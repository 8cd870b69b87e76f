"""Speed and memory, measured: `make bench` writes results.md. No number here is a test's threshold."""

import os

# As the command line does, for every candidate: read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
