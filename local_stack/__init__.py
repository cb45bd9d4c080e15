"""Carillon on one machine: `make up` to use it, `make demo` to see it, and what the tests start."""

import os

# gRPC would otherwise write a line to stderr for each child process that is started or ended while a channel is open.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# Else each connection that ends, as idle ones do, is a line that looks like a fault.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
