"""A simulated site behind the ports of a real one.

The model covers a site of zones, cells and nodes with VMs on them, and pools and networks that span
nodes and, optionally, cells. Every VM has a workload with its own habits, an hour-of-day season and
write-back flushes; counters with libvirt's resolution that restart with each qemu process; the
share of each vCPU, run-queue wait and steal; a balloon that only a live kernel updates; broadcasts
and probes that every card receives; only a live kernel answers the probes. Nodes run out of cores,
become sick or lose cores to a noisy VM; pools slow down and stall; migrations, boots and crash
dumps take time. `connectors.simulator.incidents` lists the faults and confounders. Observation can
be imperfect: late calls, lost rows and samples, clock offsets. The agent's actions take effect, and
a reset of a healthy guest harms it; `connectors.simulator.truth` records the harm.

Not modelled: more than one disk and card per VM; pools that fill up; memory pressure on nodes and
memory dirtied by guests, so pre-copy always converges; network congestion; guests that differ from
Linux 6.1; answers of a guest agent. Within one step (one second unless the plan sets another)
requests are evenly spaced. Two values are constant here that vary on real sites: a VM's resident
memory, and the distribution of its load over its vCPUs.

The same plan and the same calls give the same bytes: random numbers come from the plan's seed in
separate streams, time comes from the caller, and an action on one VM affects another one only
through shared resources.
"""
