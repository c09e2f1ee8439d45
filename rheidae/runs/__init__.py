"""Runs from configuration files: build, train, keep, score, describe."""
