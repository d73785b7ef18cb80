"""Below the SDKs: the HTTP seam, recording and replay, scrubbing, the pytest plugin, the injected clock.

Knows nothing of what the requests mean.
"""
