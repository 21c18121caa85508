"""Many experiments: studies, sweeps, and where their runs are run."""
