"""What a person types and sees: one file per group of commands, over the rooms below.

Knows nothing of how a command does its work.
"""
