"""A seeded storm over one study, beside plain Optuna in the same storm: `make chaos`."""
