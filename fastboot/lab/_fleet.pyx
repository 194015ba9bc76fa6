# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Simulated machines, thousands in one thread, without the GIL. See _fleet.pyi.

A machine is switched on, broadcasts DISCOVER, takes the first OFFER, and is bound by an ACK (RFC 2131 section 4.4).
Machines speak through one socket: datagrams of a relay that they are all behind, or frames of a link that they are
all on. What they send is a template with the machine's own MAC, xid and addresses in it.
"""
from array import array

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memcmp, memcpy, memset

from fastboot._native.dhcp cimport (
    DHCP_ACK, DHCP_COOKIE, DHCP_HEADER, DHCP_LONGEST_REPLY, DHCP_NAK, DHCP_OFFER, OPTION_CLIENT_ID,
    OPTION_REQUESTED, OPTION_SERVER, OPTION_TYPE, dhcp_next,
)
from fastboot._native.sys cimport now_ns
from fastboot._native.udp cimport UDP_HEADERS, udp_frame
from fastboot._native.wire cimport cursor_t, wire_cursor, wire_u32
from fastboot.lab._frames cimport (
    BOX, CLIENT_PORT, ETHERNET, SERVER_PORT, box_prepare, box_receive, box_send, box_t, datagram_in, put_mac,
    put_u32,
)
from fastboot.lab._sockets cimport POLLIN, wait_for

cdef enum:                          # RFC 2131 section 4.4; the last three are ends
    MACHINE_OFF = 0
    MACHINE_SELECTING
    MACHINE_REQUESTING
    MACHINE_BOUND
    MACHINE_REFUSED
    MACHINE_LOST

cdef struct machine_t:
    int64_t on                      # when it was to be switched on
    int64_t bound
    uint32_t address
    uint8_t state

cdef struct template_t:
    uint8_t data[DHCP_LONGEST_REPLY]
    int32_t size
    int32_t id_at                   # where option 61 has the MAC; 0: nowhere
    int32_t requested_at            # the values of options 50 and 54
    int32_t server_at

cdef template_t template_of(bytes packet, bint asks) except *:
    cdef template_t t
    cdef const char *octets = packet
    cdef cursor_t c
    cdef uint8_t code
    cdef size_t n
    cdef const uint8_t *value
    if not DHCP_HEADER <= len(packet) <= DHCP_LONGEST_REPLY or wire_u32(<const uint8_t *>octets + 236) != DHCP_COOKIE:
        raise ValueError("a template is a whole DHCP message")
    memset(&t, 0, sizeof(t))
    memcpy(t.data, octets, len(packet))
    t.size = len(packet)
    c = wire_cursor(t.data + DHCP_HEADER, t.size - DHCP_HEADER)
    while dhcp_next(&c, &code, &n, &value) > 0:
        if code == OPTION_REQUESTED and n == 4:
            t.requested_at = value - t.data
        elif code == OPTION_SERVER and n == 4:
            t.server_at = value - t.data
        elif code == OPTION_CLIENT_ID and n == 7 and value[0] == 1:
            t.id_at = value - t.data + 1
    if asks and not (t.requested_at and t.server_at):
        raise ValueError("the template of a REQUEST has options 50 and 54")
    return t

cdef int compare(const void *a, const void *b) noexcept nogil:
    cdef uint32_t x = (<const uint32_t *>a)[0], y = (<const uint32_t *>b)[0]
    return (x > y) - (x < y)


cdef class DhcpClients:
    """See _fleet.pyi."""
    cdef int fd
    cdef bint frames
    cdef uint32_t giaddr
    cdef template_t discover
    cdef template_t request
    cdef machine_t *machines
    cdef uint64_t first             # MAC of the first
    cdef int64_t count
    cdef int64_t most               # at once
    cdef int64_t begun
    cdef int64_t settled            # machines that are bound, refused or lost
    cdef int64_t oldest             # all before it are settled
    cdef int64_t strange
    cdef int64_t unsent
    cdef int64_t late               # nanoseconds that the latest was switched on too late
    cdef int64_t ended
    cdef box_t *inbox
    cdef box_t *outbox

    def __init__(self, int fd, bytes discover not None, bytes request not None, *, bint frames, uint32_t giaddr=0):
        if self.inbox != NULL:
            raise ValueError("these machines have a socket already")
        self.fd, self.frames, self.giaddr = fd, frames, giaddr
        self.discover = template_of(discover, False)
        self.request = template_of(request, True)
        self.inbox = <box_t *>calloc(1, sizeof(box_t))
        self.outbox = <box_t *>calloc(1, sizeof(box_t))
        if self.inbox == NULL or self.outbox == NULL:
            raise MemoryError
        box_prepare(self.inbox, False)
        box_prepare(self.outbox, False)

    def __dealloc__(self):
        free(self.machines)
        free(self.inbox)
        free(self.outbox)

    def run(self, uint64_t first, int64_t count, *, double rate=0, double seconds=3600, int64_t outstanding=0,
            double patience=1.0):
        cdef int64_t began, until, wait = <int64_t>(patience * 1e9)
        if count < 1 or rate < 0 or outstanding < 0 or not (rate or outstanding):
            raise ValueError("machines come at a rate, or so many at once, or both")
        free(self.machines)
        self.machines = <machine_t *>calloc(count, sizeof(machine_t))
        if self.machines == NULL:
            raise MemoryError
        self.first, self.count, self.most = first, count, outstanding or count
        self.begun = self.settled = self.oldest = self.strange = self.unsent = self.late = self.ended = 0
        with nogil:
            began = now_ns()
            until = began + <int64_t>(seconds * 1e9)
            self.drive(began, rate, until, wait)
        return self.outcome(began)

    cdef void drive(self, int64_t began, double rate, int64_t until, int64_t patience) noexcept nogil:
        cdef int64_t now = began, next_, end
        cdef int32_t got
        while self.begun > self.settled or (self.begun < self.count and now < until):
            got = box_receive(self.inbox, self.fd)
            now = now_ns()
            self.take(got, now)
            self.unsent += box_send(self.outbox, self.fd, not self.frames)
            while self.outbox.n < BOX and self.begun - self.settled < self.most and self.begun < self.count:
                next_ = began + <int64_t>(self.begun * 1e9 / rate) if rate else now
                if next_ > now or now >= until:
                    break
                self.switch_on(next_, now)
            self.unsent += box_send(self.outbox, self.fd, not self.frames)
            self.give_up(now - patience)
            if got == 0:
                end = now + 100000000
                if self.oldest < self.begun:
                    end = min(end, self.machines[self.oldest].on + patience)
                if self.begun < self.count and self.begun - self.settled < self.most and now < until:
                    end = min(end, began + <int64_t>(self.begun * 1e9 / rate) if rate else now)
                wait_for(self.fd, POLLIN, max(<int64_t>0, end - now_ns()))

    cdef void switch_on(self, int64_t due, int64_t now) noexcept nogil:
        cdef machine_t *m = &self.machines[self.begun]
        m.on, m.state = due, MACHINE_SELECTING
        self.late = max(self.late, now - due)
        self.write(&self.discover, self.begun)
        self.begun += 1

    cdef void give_up(self, int64_t before) noexcept nogil:
        # On those switched on before a time; they were switched on in the order of their numbers.
        while self.oldest < self.begun and (self.machines[self.oldest].state >= MACHINE_BOUND
                                            or self.machines[self.oldest].on < before):
            if self.machines[self.oldest].state < MACHINE_BOUND:
                self.machines[self.oldest].state = MACHINE_LOST
                self.settled += 1
            self.oldest += 1

    cdef void write(self, const template_t *t, int64_t i) noexcept nogil:
        # Writes a packet of machine `i` into the outbox.
        cdef int32_t at = self.outbox.n
        cdef uint8_t *frame = self.outbox.data[at]
        cdef uint8_t *out = frame + (ETHERNET + UDP_HEADERS if self.frames else 0)
        cdef uint64_t mac = self.first + i
        memcpy(out, t.data, t.size)
        put_u32(out + 4, <uint32_t>mac)
        put_u32(out + 24, self.giaddr)
        out[3] = self.giaddr != 0                           # hops
        put_mac(out + 28, mac)
        if t.id_at:
            put_mac(out + t.id_at, mac)
        if t.requested_at:
            put_u32(out + t.requested_at, self.machines[i].address)
        self.outbox.iov[at].iov_len = t.size
        if self.frames:
            memset(frame, 0xff, 6)
            put_mac(frame + 6, mac)
            frame[12], frame[13] = 8, 0
            udp_frame(frame + ETHERNET, 0, CLIENT_PORT, 0xFFFFFFFF, SERVER_PORT, t.size)
            self.outbox.iov[at].iov_len += ETHERNET + UDP_HEADERS
        self.outbox.n += 1

    cdef void take(self, int32_t got, int64_t now) noexcept nogil:
        cdef int32_t k
        cdef size_t n
        cdef const uint8_t *payload
        cdef const uint8_t *packet
        for k in range(got):
            packet = payload = self.inbox.data[k]
            n = self.inbox.vec[k].msg_len
            if self.frames:
                payload = datagram_in(packet, &n, CLIENT_PORT)
                if payload == NULL:
                    continue                                # ARP, IPv6
            self.strange += not self.understand(packet, payload, n, now)

    cdef bint understand(self, const uint8_t *packet, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
        cdef int64_t i
        cdef machine_t *m
        cdef uint8_t mac[6]
        cdef uint8_t type_ = 0, code
        cdef uint32_t server = 0
        cdef size_t size
        cdef const uint8_t *value
        cdef cursor_t c
        if n < DHCP_HEADER or p[0] != 2 or wire_u32(p + 236) != DHCP_COOKIE:
            return False
        i = <uint32_t>(wire_u32(p + 4) - <uint32_t>self.first)
        if i >= self.begun:
            return False
        m = &self.machines[i]
        put_mac(mac, self.first + i)
        if memcmp(p + 28, mac, 6) or (self.frames and packet[0] != 0xff and memcmp(packet, mac, 6)):
            return False
        c = wire_cursor(p + DHCP_HEADER, n - DHCP_HEADER)
        while not (type_ and server) and dhcp_next(&c, &code, &size, &value) > 0:
            if code == OPTION_TYPE and size == 1:
                type_ = value[0]
            elif code == OPTION_SERVER and size == 4:
                server = wire_u32(value)
        if type_ == DHCP_OFFER and m.state == MACHINE_SELECTING:
            m.state, m.address = MACHINE_REQUESTING, wire_u32(p + 16)
            put_u32(self.request.data + self.request.server_at, server)
            self.write(&self.request, i)
        elif type_ == DHCP_ACK and m.state == MACHINE_REQUESTING and m.address == wire_u32(p + 16):
            m.state, m.bound = MACHINE_BOUND, now
            self.settled += 1
            self.ended = now
        elif type_ == DHCP_NAK and m.state == MACHINE_REQUESTING:
            m.state = MACHINE_REFUSED
            self.settled += 1
        else:
            return m.state >= MACHINE_BOUND or type_ == DHCP_OFFER     # late, or a second server's
        return True

    cdef outcome(self, int64_t began):
        cdef int64_t i
        cdef int64_t counts[MACHINE_LOST + 1]
        memset(counts, 0, sizeof(counts))
        latencies = array("d")
        for i in range(self.begun):
            counts[self.machines[i].state] += 1
            if self.machines[i].state == MACHINE_BOUND:
                latencies.append((self.machines[i].bound - self.machines[i].on) / 1e9)
        return {
            "begun": self.begun, "bound": counts[MACHINE_BOUND], "refused": counts[MACHINE_REFUSED],
            "lost": counts[MACHINE_LOST], "twice": self.shared(), "strange": self.strange, "unsent": self.unsent,
            "late": self.late / 1e9, "seconds": max(<int64_t>0, self.ended - began) / 1e9, "latencies": latencies,
        }

    cdef int64_t shared(self) except -1:
        # Machines that were given an address that another has too.
        cdef int64_t i, n = 0, twice = 0
        cdef uint32_t *addresses = <uint32_t *>calloc(max(self.begun, <int64_t>1), sizeof(uint32_t))
        if addresses == NULL:
            raise MemoryError
        with nogil:
            for i in range(self.begun):
                if self.machines[i].state == MACHINE_BOUND:
                    addresses[n] = self.machines[i].address
                    n += 1
            qsort(addresses, n, sizeof(uint32_t), compare)
            for i in range(1, n):
                twice += addresses[i] == addresses[i - 1]
        free(addresses)
        return twice
