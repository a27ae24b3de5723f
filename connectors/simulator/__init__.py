"""A simulated site behind the ports of a real one.

What is modelled: a site of zones, cells and nodes with VMs on them, pools and networks that
span nodes and, if wanted, cells. Every VM has a workload with its own habits, an hour-of-day
season and write-back flushes; counters in libvirt's quanta that start anew with each qemu
process; the share of each vCPU, run-queue wait and steal; a balloon that only a living
kernel keeps fresh; broadcasts and probes that every card receives and only a living kernel
answers. Nodes run out of cores, get sick or are squeezed; pools slow down and stall;
migrations, boots and crash dumps take their time. Faults and confounders are those of
`connectors.simulator.plan`. Nodes may be seen badly: late calls, lost rows and samples,
clocks that are off. The agent's verbs really act, and a healthy guest that is reset is
really hurt; `connectors.simulator.truth` keeps count of it.

What is not modelled: more than one disk and card per VM; pools that fill up; memory
pressure on nodes and memory dirtied by guests, so pre-copy always converges; network
congestion; guests that answer differently from Linux 6.1; anything a guest agent would
say. Within one step (one second unless the plan says otherwise) requests come evenly. Two
things stand still that move in the field: a VM's resident memory, and how its load is
spread over its vCPUs.

The same plan and the same calls give the same bytes: chance comes from the plan's seed in
separate streams, time from the caller, and what is done to one VM changes another one only
where they share something.
"""
