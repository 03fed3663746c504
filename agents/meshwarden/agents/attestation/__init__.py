"""Who is on the socket: what the kernel says of a process, and whether it fits what an entry selects."""
