"""What ``python -m cjepa_agent.evaluate`` runs: one module per task, each with ``run(config) -> str``."""
