"""What operators see of a process of ours: its log lines, and an HTTP port with liveness and metrics."""
