"""What a user's TOML may say, as frozen settings: sections in `settings`, the method's own in `method`.

Knows nothing of what the settings do.
"""
