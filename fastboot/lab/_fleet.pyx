# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Simulated machines, thousands in one thread, without the GIL. See _fleet.pyi.

A machine is switched on, broadcasts DISCOVER, takes the first OFFER, and is bound by an ACK (RFC 2131 section 4.4).
Machines speak through one socket: datagrams of a relay that they are all behind, or frames of a link that they are
all on. What they send is a template with the machine's own MAC, xid and addresses in it.
"""
from array import array

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memcmp, memcpy, memset

from fastboot._native.dhcp cimport (
    DHCP_ACK, DHCP_COOKIE, DHCP_DISCOVER, DHCP_FRAME, DHCP_HEADER, DHCP_LONGEST, DHCP_LONGEST_REPLY, DHCP_NAK,
    DHCP_OFFER, DHCP_SHORTEST_REPLY, OPTION_CLIENT_ID, OPTION_END, OPTION_LEASE, OPTION_REQUESTED, OPTION_SERVER,
    OPTION_TYPE, dhcp_frame, dhcp_next, dhcp_put_number, dhcp_put_option,
)
from fastboot._native.sys cimport (
    EAGAIN, EINTR, ENOBUFS, MSG_DONTWAIT, errno, iovec, mmsghdr, now_ns, recvmmsg, sendmmsg, sockaddr_in, timespec,
)
from fastboot._native.wire cimport (
    cursor_t, pen_t, wire_cursor, wire_pen, wire_put_u32, wire_u16, wire_u32,
)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long n, const timespec *timeout, const void *mask)
    enum:
        POLLIN, POLLOUT

cdef enum:
    BATCH = 64                      # packets per system call
    ETHERNET = 14                   # octets of its header
    ROOM = ETHERNET + DHCP_FRAME + DHCP_LONGEST
    CLIENT_PORT = 68
    SERVER_PORT = 67

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

cdef struct box_t:                  # packets of one system call
    mmsghdr vec[BATCH]
    iovec iov[BATCH]
    sockaddr_in name[BATCH]
    uint8_t data[BATCH][ROOM]
    int32_t n


cdef void box_prepare(box_t *box, bint named) noexcept nogil:
    cdef int32_t i
    for i in range(BATCH):
        memset(&box.vec[i], 0, sizeof(mmsghdr))
        box.iov[i].iov_base, box.iov[i].iov_len = box.data[i], ROOM
        box.vec[i].msg_hdr.msg_iov, box.vec[i].msg_hdr.msg_iovlen = &box.iov[i], 1
        if named:
            box.vec[i].msg_hdr.msg_name, box.vec[i].msg_hdr.msg_namelen = &box.name[i], sizeof(sockaddr_in)

cdef int32_t box_receive(box_t *box, int fd) noexcept nogil:
    cdef int32_t i
    for i in range(BATCH):
        box.iov[i].iov_len = ROOM
    return max(0, recvmmsg(fd, box.vec, BATCH, MSG_DONTWAIT, NULL))

cdef int32_t box_send(box_t *box, int fd) noexcept nogil:
    # How many the kernel refused for good.
    cdef int32_t done = 0, refused = 0
    cdef int rc
    while done < box.n:
        rc = sendmmsg(fd, box.vec + done, box.n - done, MSG_DONTWAIT)
        if rc > 0:
            done += rc
        elif errno == EAGAIN or errno == ENOBUFS:
            wait_for(fd, POLLOUT, 1000000)
        elif errno != EINTR:
            done += 1
            refused += 1
    box.n = 0
    return refused

cdef void wait_for(int fd, short events, int64_t nanoseconds) noexcept nogil:
    cdef pollfd entry
    cdef timespec limit
    entry.fd, entry.events, entry.revents = fd, events, 0
    limit.tv_sec, limit.tv_nsec = nanoseconds // 1000000000, nanoseconds % 1000000000
    ppoll(&entry, 1, &limit, NULL)

cdef const uint8_t *datagram_in(const uint8_t *frame, size_t *n, uint16_t port) noexcept nogil:
    # The payload of a UDP datagram to `port` in an Ethernet frame, its size in `n`; NULL for any other frame.
    cdef size_t head
    cdef const uint8_t *ip = frame + ETHERNET
    if n[0] < ETHERNET + DHCP_FRAME or wire_u16(frame + 12) != 0x0800 or ip[0] >> 4 != 4 or ip[9] != 17:
        return NULL
    head = 4 * (ip[0] & 15)
    if head < 20 or n[0] < ETHERNET + head + 8 or wire_u16(ip + head + 2) != port:
        return NULL
    n[0] -= ETHERNET + head + 8
    return ip + head + 8

cdef void put_mac(uint8_t *out, uint64_t mac) noexcept nogil:
    cdef int i
    for i in range(6):
        out[i] = (mac >> (40 - 8 * i)) & 0xff

cdef void put_u32(uint8_t *out, uint32_t value) noexcept nogil:
    cdef pen_t p = wire_pen(out, 4)
    wire_put_u32(&p, value)

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
            self.unsent += box_send(self.outbox, self.fd)
            while self.outbox.n < BATCH and self.begun - self.settled < self.most and self.begun < self.count:
                next_ = began + <int64_t>(self.begun * 1e9 / rate) if rate else now
                if next_ > now or now >= until:
                    break
                self.switch_on(next_, now)
            self.unsent += box_send(self.outbox, self.fd)
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
        cdef uint8_t *out = frame + (ETHERNET + DHCP_FRAME if self.frames else 0)
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
            dhcp_frame(frame + ETHERNET, 0, CLIENT_PORT, 0xFFFFFFFF, SERVER_PORT, t.size)
            self.outbox.iov[at].iov_len += ETHERNET + DHCP_FRAME
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


cdef size_t sink_reply(uint8_t *p, size_t n, uint32_t server) noexcept nogil:
    # Makes the answer in the memory of the request; 0: there is none.
    cdef cursor_t c = wire_cursor(p + DHCP_HEADER, n - DHCP_HEADER)
    cdef uint8_t code, type_
    cdef size_t size
    cdef const uint8_t *value
    cdef pen_t out
    if n < DHCP_HEADER or dhcp_next(&c, &code, &size, &value) <= 0 or code != OPTION_TYPE:
        return 0
    type_ = DHCP_OFFER if value[0] == DHCP_DISCOVER else DHCP_ACK
    p[0] = 2
    put_u32(p + 16, (server & <uint32_t>0xFF000000) | (wire_u32(p + 30) & 0xFFFFFF))
    out = wire_pen(p + DHCP_HEADER, DHCP_SHORTEST_REPLY - DHCP_HEADER)
    dhcp_put_option(&out, OPTION_TYPE, &type_, 1)
    dhcp_put_number(&out, OPTION_SERVER, server)
    dhcp_put_number(&out, OPTION_LEASE, 3600)
    memset(out.at, OPTION_END, 1)
    return DHCP_SHORTEST_REPLY

cdef void sink_frame(uint8_t *frame, uint8_t *p, size_t n, uint32_t server) noexcept nogil:
    memcpy(frame, p + 28, 6)
    memset(frame + 6, 2, 6)
    dhcp_frame(frame + ETHERNET, server, SERVER_PORT, wire_u32(p + 16), CLIENT_PORT, n)


def dhcp_sink(int fd, *, bint frames, uint32_t server, double seconds):
    """See _fleet.pyi."""
    cdef box_t *box = <box_t *>calloc(1, sizeof(box_t))
    cdef int64_t until = now_ns() + <int64_t>(seconds * 1e9)
    cdef int64_t answered = 0
    cdef int32_t got, k, kept
    cdef size_t n
    cdef const uint8_t *p
    if box == NULL:
        raise MemoryError
    with nogil:
        while now_ns() < until:
            box_prepare(box, not frames)
            got = box_receive(box, fd)
            kept = 0
            for k in range(got):
                n = box.vec[k].msg_len
                p = datagram_in(box.data[k], &n, SERVER_PORT) if frames else box.data[k]
                n = sink_reply(<uint8_t *>p, n, server) if p != NULL else 0
                if n == 0:
                    continue
                if frames:
                    sink_frame(box.data[k], <uint8_t *>p, n, server)
                    n += ETHERNET + DHCP_FRAME
                box.iov[k].iov_len = n
                box.vec[kept] = box.vec[k]
                kept += 1
            box.n = kept
            box_send(box, fd)
            answered += kept
            if got == 0:
                wait_for(fd, POLLIN, 100000000)
    free(box)
    return answered
