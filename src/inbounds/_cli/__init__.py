"""The command line: its commands, the demo, and the catalogue of sets with its pictures."""
