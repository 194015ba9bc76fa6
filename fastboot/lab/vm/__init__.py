"""One virtual machine boots from the real server.

machine     in QEMU: firmware, network card, empty disk, serial console
initrd      cpio, and the initrd that tries the media out (`initrd/init`)
media       a media tree that is the same every time, and what it holds
other       the DHCP server that gives the addresses where ours is a proxy
story       the steps of a boot, from events and console lines; no I/O
scenario    all of these together: the whole way, and the verdict
screen      the story on a terminal
demo        `fastboot demo`
"""
