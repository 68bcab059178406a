"""The decision log: all that a router heard and decided, without a word of any prompt, and its replay."""
