"""A package, so that fresh processes find these tests and not those of some installed distribution."""
