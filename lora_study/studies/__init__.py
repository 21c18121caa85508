"""Many experiments: studies, sweeps, and the launchers that run them."""
