"""What is promised about speed, as programs that print figures."""

import local_stack as local_stack  # what it sets for gRPC counts only before gRPC is there
