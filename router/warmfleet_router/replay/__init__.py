"""Trace replay: the router's own placement code over a fleet of modelled workers, in virtual time."""
