"""The providers that come with the project: one folder per vendor."""
