"""Matchers and the pool their matches are filtered in."""
