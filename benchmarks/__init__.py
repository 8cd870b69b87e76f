"""Speed and memory, measured: `make bench` writes results.md. No number here is a test's threshold."""
