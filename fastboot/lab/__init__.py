"""The rehearsal lab: machines boot from the real server on a private network, where possible without root.

vm          virtual machines: one boots the whole way (`fastboot demo`)
rehearsal   hundreds of simulated machines: a lab's morning (`fastboot rehearse`)
namespace   a network namespace of our own; child processes that die with us
network     a bridge with the server's address, a cable for each machine, the answer to IPv6 router solicitations
server      `fastboot serve` in a child process, watched through its control socket
fleet       simulated machines that get an address by DHCP, as many as a second holds
tftp        simulated TFTP clients, as data, and many of them at once
interrupt   what an interrupted lab does
"""
