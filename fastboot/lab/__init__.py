"""The rehearsal lab: machines boot from the real server on a private network, where possible without root.

namespace   a network namespace of our own; child processes that die with us
network     a bridge with the server's address, a cable for each machine, the answer to IPv6 router solicitations
machine     a virtual machine in QEMU: firmware, network card, empty disk, serial console
initrd      cpio, and the initrd that tries the media out (`initrd/init`)
media       a media tree that is the same every time, and what it holds
server      `fastboot serve` in a child process, watched through its control socket
story       the steps of a boot, from events and console lines; no I/O
rehearsal   all of these together: one machine, the whole way, the verdict
screen      the story on a terminal
demo        `fastboot demo`
fleet       simulated machines that get an address by DHCP, as many as a second holds
tftp        simulated TFTP clients, as data, and many of them at once
kinds       the kinds of machines as data: firmware, loaders, what each asks by DHCP
bootfile    what a loader makes of its configuration
morning     what machines do from power-on to the installer, and the loop that plays them
site        two ends of a network: the server's, with the interfaces of a configuration, and the machines'
played      the server of a rehearsal, on a copy of the state
tally       what a rehearsal found, and what held it up; `picture` draws it
rehearse    `fastboot rehearse`; `command` has its arguments
"""
