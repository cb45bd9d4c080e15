"""What is promised about speed, as programs that print figures."""
