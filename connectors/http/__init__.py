"""What operators and monitors ask over HTTP: alive, ready, metrics."""
