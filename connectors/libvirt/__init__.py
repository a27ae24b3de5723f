"""The hypervisor: bulk statistics, lifecycle events and the few verbs of the agent."""
