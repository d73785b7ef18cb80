"""Below the SDKs: cassettes, the recording proxy, the injected clock."""
