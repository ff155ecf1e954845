"""What the peers serve. Each file runs in its peer's own environment; none imports this project."""
