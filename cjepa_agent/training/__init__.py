"""Training: one loop, one stage class per thing that is trained."""
