"""The libraries that `against_peers.py` compares, one side a file, each run by `worker.py`."""
