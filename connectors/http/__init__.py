"""HTTP endpoints for operators and monitoring: liveness, readiness, metrics."""
