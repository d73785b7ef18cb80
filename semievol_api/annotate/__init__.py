"""Every question gets its nearest examples and its answers: annotators, requests, replies, retrieval, estimators.

Knows nothing of which labels are kept or what is trained.
"""
