"""The lesson's figures: each is drawn from a run made here. `make figures` makes them all."""
