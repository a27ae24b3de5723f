"""The hypervisor: bulk statistics, lifecycle events and the few actions of the agent."""
