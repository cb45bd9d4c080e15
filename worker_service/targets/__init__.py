"""How a run is carried out, one module for each kind of target that the worker service can call."""
