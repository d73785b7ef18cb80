"""Running and training open models on this machine: an inference engine and a trainer, without HTTP.

`engine.Engine` answers requests about one base model and its adapters; `train` is a program that trains one
adapter in a process of its own. Importing this package imports no torch: import the modules you need.
Knows nothing of HTTP, jobs' queues or the method.
"""
