"""The tests of the sets."""
