"""Carillon on one machine: `make up` to use it, `make demo` to see it, and what the tests start."""
