"""A lab's morning: hundreds of simulated machines boot from a real server.

command     the arguments of `fastboot rehearse`
run         network, server and machines are made, the morning is played, the report is told
site        a private network: the server's end, with the interfaces of a configuration, and the machines'
server      the server there, on a copy of the state
kinds       the kinds of machines as data: firmware, loaders, what each asks by DHCP
bootfile    what a loader makes of its configuration
machine     a machine, its steps, and where its files are
fetching    what a machine does at one time: an address, a file
walk        what it does one after the other, from power-on to its kernel
installer   what its installer fetches then
morning     the loop that plays them all
watch       the processors meanwhile
report      what was found, and what held it up; `picture` draws it
"""
