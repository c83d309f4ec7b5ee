"""Reports that read the plan: what runs where, and what the state takes."""
