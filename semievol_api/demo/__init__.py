"""The demo: a tiny model and a small task that ship with the package.

Holds files and where they lie. Knows nothing of how they were made (`build/`) or how they are used.
"""
