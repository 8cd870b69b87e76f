"""The commands: one file each, with its arguments (`add`) and what it does. A new one joins the list in `cli`."""
