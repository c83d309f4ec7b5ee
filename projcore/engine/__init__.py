"""The machine: plans what a step does, runs it, and writes parameters and state."""
