"""Other libraries' models: their names, settings and clocks, mapped to ours and back.

None of those libraries is imported here. What our network cannot express is refused by name.
"""
