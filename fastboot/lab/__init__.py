"""The rehearsal lab: private networks, virtual machines and simulated clients."""
