"""Many runs: their notes, their list, and sweeps over settings."""
